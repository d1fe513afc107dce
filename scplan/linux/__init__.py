"""Kernel interfaces: system calls, netlink, /proc and /sys are used in this package only."""

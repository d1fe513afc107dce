"""The kernel: the only home of system calls, netlink, /proc and /sys."""

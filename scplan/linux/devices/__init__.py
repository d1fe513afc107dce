"""Block devices and device nodes."""

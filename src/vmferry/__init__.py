"""vmferry moves running KVM guests between hosts: you know before, it arrives, exactly one."""

__version__ = "0.1.0.dev0"

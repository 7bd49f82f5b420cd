"""Nested hosts: machines with a kernel of their own, emulated on this one, with everything that is installed here.

What network namespaces cannot show (locks between kernels, a host that loses its power, devices that this machine does
not have) is shown between two of them.
"""

from vmferry.lab.nested.fleet import NestedFleet
from vmferry.lab.nested.host import HostPlan, NestedHost
from vmferry.lab.nested.lab import NestedLab

__all__ = ["HostPlan", "NestedFleet", "NestedHost", "NestedLab"]

"""
C{ccproxyctl vm}: real VMs, by QEMU.

L{ccproxy.tools.vm.packages} gets a kernel, L{ccproxy.tools.vm.image} builds what boots with it,
L{ccproxy.tools.vm.hypervisor} runs QEMU, and L{ccproxy.tools.vm.command} is the command line.
"""

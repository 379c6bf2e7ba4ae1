"""
Real VMs, by QEMU.

L{ccproxy.vm.packages} gets a kernel, L{ccproxy.vm.image} builds what boots with it, and
L{ccproxy.vm.hypervisor} runs QEMU.
"""

/* Entry of the micro guest: QEMU's -kernel loads it as a multiboot program, 32-bit protected mode, no paging.
 * Source: Multiboot Specification 0.6.96, sections 3.1 and 3.2. */

	.set MAGIC, 0x1badb002
	.set FLAGS, 0

	.section .multiboot, "a"
	.align 4
	.long MAGIC, FLAGS, -(MAGIC + FLAGS)

	.text
	.globl _start, on_tick_entry, on_stray_entry
_start:
	mov $stack_top, %esp
	lgdt gdt_pointer	/* the loader's own table need not outlive it */
	ljmp $0x08, $1f
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	cld
	pushl %ebx		/* multiboot information */
	call micro_main
2:	cli
	hlt
	jmp 2b

on_tick_entry:
	pusha
	cld
	call on_tick
	popa
	iret

on_stray_entry:			/* a spurious IRQ: nothing to do, nothing to acknowledge */
	iret

	.section .rodata
	.align 8
gdt:	.quad 0
	.quad 0x00cf9a000000ffff	/* 0x08: code, 4 GiB flat */
	.quad 0x00cf92000000ffff	/* 0x10: data, 4 GiB flat */
gdt_pointer:
	.word . - gdt - 1
	.long gdt

	.bss
	.align 16
	.skip 16384
stack_top:

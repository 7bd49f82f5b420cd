/* The millisecond clock and the beat: PIT channel 0 at 1000 Hz through the 8259 (IRQ 0 on vector 32).
 *
 * Each tick writes one byte, the low byte of the beat's sequence number, to I/O port 0xe9 (isa-debugcon).
 * The beat is made in the interrupt, so that it goes on while the oracle sweeps.
 */
#include "micro.h"

#define PIT_HZ 1193182u
#define DEBUGCON 0xe9
#define VECTOR 32
#define VECTORS 48
#define PIC1 0x20
#define PIC2 0xa0

struct gate { u16 low, selector, type, high; };
static struct gate idt[VECTORS];

volatile u32 ticks;
extern void on_tick_entry(void), on_stray_entry(void);

void on_tick(void)
{
	outb(DEBUGCON, (u8)ticks++);
	outb(PIC1, 0x20); /* end of interrupt */
}

static void set_gate(int vector, void (*entry)(void))
{
	u32 at = (u32)entry;

	idt[vector] = (struct gate){at & 0xffff, 0x08, 0x8e00, at >> 16};
}

static void pic_init(void)
{
	outb(PIC1, 0x11), outb(PIC2, 0x11);
	outb(PIC1 + 1, VECTOR), outb(PIC2 + 1, VECTOR + 8);
	outb(PIC1 + 1, 4), outb(PIC2 + 1, 2);
	outb(PIC1 + 1, 1), outb(PIC2 + 1, 1);
	outb(PIC1 + 1, 0xfe), outb(PIC2 + 1, 0xff); /* only the timer may interrupt */
}

void clock_init(void)
{
	struct { u16 limit; u32 base; } __attribute__((packed)) pointer = {sizeof idt - 1, (u32)idt};

	for (int vector = VECTOR; vector < VECTORS; vector++)
		set_gate(vector, on_stray_entry);
	set_gate(VECTOR, on_tick_entry);
	__asm__ volatile("lidt %0" : : "m"(pointer));
	pic_init();
	outb(0x43, 0x34); /* channel 0, rate generator */
	outb(0x40, (PIT_HZ / 1000) & 0xff);
	outb(0x40, (PIT_HZ / 1000) >> 8);
	__asm__ volatile("sti");
}

/* COM1, polled. */
#include "micro.h"

#define COM1 0x3f8
#define LINE_STATUS (COM1 + 5)
#define RECEIVED 0x01
#define ROOM 0x20

void serial_init(void)
{
	outb(COM1 + 1, 0);    /* no interrupts */
	outb(COM1 + 3, 0x80); /* divisor latch: 115200 baud */
	outb(COM1 + 0, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 0x03); /* 8N1 */
	outb(COM1 + 2, 0x07); /* FIFO on and empty */
}

int serial_read(void) { return inb(LINE_STATUS) & RECEIVED ? inb(COM1) : -1; }

void print(const char *text)
{
	for (; *text; text++) {
		while (!(inb(LINE_STATUS) & ROOM))
			;
		outb(COM1, *text);
	}
}

void print_number(u32 value)
{
	char digits[11], *at = digits + sizeof digits - 1;

	*at = 0;
	do
		*--at = '0' + value % 10;
	while (value /= 10);
	print(at);
}

/* What the parts of the micro guest promise each other. Everything is 32 bits wide: there is no libgcc. */
#ifndef VMFERRY_MICRO_H
#define VMFERRY_MICRO_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

#define PAGES_PER_MIB 256u

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port)
{
	u8 value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

/* oracle.c */
void oracle_init(u32 mib);
void oracle_write_next(void);
void oracle_corrupt(void);
void oracle_report(void);

/* serial.c */
void serial_init(void);
int serial_read(void); /* -1 when nothing has come */
void print(const char *text);
void print_number(u32 value);

/* tpm.c: extend and write, then say what is there; only say it */
void tpm_use(void);
void tpm_report(void);

/* clock.c */
extern volatile u32 ticks; /* milliseconds since the start, by the PIT */
void clock_init(void);

#endif

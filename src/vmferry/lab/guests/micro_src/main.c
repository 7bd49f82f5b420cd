/* The micro guest: dirties memory, beats, answers seven letters on COM1 and nothing else.
 *
 *   o  print the oracle's verdict          c  corrupt a page behind the oracle's back
 *   p  power off (ACPI S5)    r  reboot    h  halt for good (cli; hlt)
 *   t  use the TPM, print its state        s  print the state of the TPM
 *
 * Command line: mb= (working set, MiB, default 16) and rate= (MiB/s, whole numbers, default 0).
 */
#include "micro.h"

#define PM1A_CONTROL 0x604 /* where SeaBIOS puts it on both pc and q35 */
#define SLEEP_S5 0x2000
#define HAS_CMDLINE 4
#define BACKLOG_MS 50

struct multiboot { u32 flags, mem_lower, mem_upper, boot_device; const char *cmdline; };

static u32 read_setting(const char *text, const char *key, u32 otherwise)
{
	for (; *text; text++) {
		const char *at = text, *want = key;
		while (*want && *at == *want)
			at++, want++;
		if (*want)
			continue;
		for (otherwise = 0; *at >= '0' && *at <= '9'; at++)
			otherwise = otherwise * 10 + (*at - '0');
		return otherwise;
	}
	return otherwise;
}

static void halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

static void reboot(void)
{
	outb(0x64, 0xfe); /* the keyboard controller pulls the reset line */
	halt();
}

static void power_off(void)
{
	outw(PM1A_CONTROL, SLEEP_S5);
	halt();
}

static void obey(int letter)
{
	switch (letter) {
	case 'o':
		oracle_report();
		break;
	case 'c':
		oracle_corrupt();
		break;
	case 't':
		tpm_use();
		break;
	case 's':
		tpm_report();
		break;
	case 'p':
		power_off();
		break;
	case 'r':
		reboot();
		break;
	case 'h':
		halt();
	}
}

/* Each millisecond owes rate * 256 / 1000 pages, counted in thousandths; arrears over 50 ms are given up. */
static void write_for_ever(u32 rate)
{
	u32 seen = ticks, owed = 0, per_tick = rate * PAGES_PER_MIB;

	for (;;) {
		u32 now = ticks, late = now - seen;
		seen = now;
		owed += (late < BACKLOG_MS ? late : BACKLOG_MS) * per_tick;
		for (; owed >= 1000; owed -= 1000)
			oracle_write_next();
		obey(serial_read());
		if (ticks == seen)
			__asm__ volatile("hlt");
	}
}

void micro_main(const struct multiboot *info)
{
	const char *cmdline = info->flags & HAS_CMDLINE ? info->cmdline : "";
	u32 mib = read_setting(cmdline, " mb=", 16), rate = read_setting(cmdline, " rate=", 0);

	serial_init();
	clock_init();
	oracle_init(mib);
	print("vmferry-guest ready mb="), print_number(mib);
	print(" rate="), print_number(rate);
	print("\n");
	write_for_ever(rate);
}

/* A TPM 2.0 at its usual address, polled: PCR 16 is its volatile state, an NV index of four bytes its permanent one.
 * Source: TCG PC Client Platform TPM Profile, "FIFO interface"; TCG TPM 2.0 Library, part 3. */
#include "micro.h"

#define TIS 0xfed40000u
#define ACCESS (*(volatile u8 *)TIS)
#define STATUS (*(volatile u8 *)(TIS + 0x18))
#define FIFO (*(volatile u8 *)(TIS + 0x24))
#define REQUEST_USE 0x02
#define ACTIVE 0x20
#define COMMAND_READY 0x40
#define GO 0x20
#define DATA_AVAILABLE 0x10

#define PATIENCE_MS 10000
#define HEADER 10
#define CODE_AT 6
#define ANSWER_MAX 128
/* behind the header: counter, selection, count and size; of an NV index: length of all and size */
#define PCR_AT (HEADER + 20)
#define NV_AT (HEADER + 6)
#define DEFINED_ALREADY 0x14cu
#define NO_ANSWER 0xffffffffu

#define EMPTY_PASSWORD 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0
#define OWNER 0x40, 0, 0, 1
#define INDEX 1, 0x50, 0, 0x16
#define SHA256 0, 0x0b
#define EIGHT(byte) byte, byte, byte, byte, byte, byte, byte, byte

static const u8 extend[] = {0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, 16, EMPTY_PASSWORD, 0, 0, 0, 1, SHA256,
			    EIGHT('v'), EIGHT('m'), EIGHT('f'), EIGHT('y')};
static const u8 read_pcr[] = {0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e, 0, 0, 0, 1, SHA256, 3, 0, 0, 1};
/* read and written by the owner, outside of the lock against guessing */
static const u8 define[] = {0x80, 2, 0, 0, 0, 45, 0, 0, 1, 0x2a, OWNER, EMPTY_PASSWORD, 0, 0, 0, 14, INDEX, SHA256,
			    2, 2, 0, 2, 0, 0, 0, 4};
static u8 write_nv[] = {0x80, 2, 0, 0, 0, 39, 0, 0, 1, 0x37, OWNER, INDEX, EMPTY_PASSWORD, 0, 4, 0, 0, 0, 0, 0, 0};
static const u8 read_nv[] = {0x80, 2, 0, 0, 0, 35, 0, 0, 1, 0x4e, OWNER, INDEX, EMPTY_PASSWORD, 0, 4, 0, 0};

static u8 answer[ANSWER_MAX];
static u32 uses;

static u32 number_at(u32 at)
{
	return (u32)answer[at] << 24 | (u32)answer[at + 1] << 16 | (u32)answer[at + 2] << 8 | answer[at + 3];
}

static int wait_for(const volatile u8 *from, u8 bit)
{
	for (u32 since = ticks; !(*from & bit);)
		if (ticks - since > PATIENCE_MS)
			return 0;
	return 1;
}

/* Returns the TPM's own code, 0 for success. */
static u32 run(const u8 *command, u32 length)
{
	u32 got = 0;

	ACCESS = REQUEST_USE;
	if (!wait_for(&ACCESS, ACTIVE))
		return NO_ANSWER;
	STATUS = COMMAND_READY;
	if (!wait_for(&STATUS, COMMAND_READY))
		return NO_ANSWER;
	for (u32 i = 0; i < length; i++)
		FIFO = command[i];
	STATUS = GO;
	if (!wait_for(&STATUS, DATA_AVAILABLE))
		return NO_ANSWER;
	while ((STATUS & DATA_AVAILABLE) && got < ANSWER_MAX)
		answer[got++] = FIFO;
	STATUS = COMMAND_READY;
	return got < HEADER ? NO_ANSWER : number_at(CODE_AT);
}

static u32 use(void)
{
	u32 code = run(extend, sizeof extend);

	if (code)
		return code;
	code = run(define, sizeof define);
	if (code && code != DEFINED_ALREADY)
		return code;
	write_nv[sizeof write_nv - 3] = ++uses;
	return run(write_nv, sizeof write_nv);
}

void tpm_use(void)
{
	u32 code = use();

	if (!code)
		tpm_report();
	else
		print("tpm error "), print_number(code), print("\n");
}

void tpm_report(void)
{
	u32 code = run(read_pcr, sizeof read_pcr), pcr = number_at(PCR_AT);

	if (!code)
		code = run(read_nv, sizeof read_nv);
	if (code)
		print("tpm error "), print_number(code);
	else
		print("tpm pcr="), print_number(pcr), print(" nv="), print_number(number_at(NV_AT));
	print("\n");
}

/* The micro guest's integrity oracle: the linux guest's in 32 bits (see ../workload/oracle.c for the reasons).
 *
 * Fixed places, no allocator: table at 4 MiB, its inverted twin at 8 MiB, pages from 16 MiB on.
 */
#include "micro.h"

#define WORDS 1024
#define HEADER 3 /* words: index, generation, checksum */

static u32 *const generation = (u32 *)0x400000;
static u32 *const twin = (u32 *)0x800000;
static u32 (*const memory)[WORDS] = (u32 (*)[WORDS])0x1000000;

static u32 pages, writes, digest, cursor;
static u32 bad, first; /* what the verification before a write caught, and the sweep's findings on top */
static const char *kind;

static u32 mix(u32 x)
{
	x += 0x9e3779b9u;
	x = (x ^ (x >> 16)) * 0x85ebca6bu;
	x = (x ^ (x >> 13)) * 0xc2b2ae35u;
	return x ^ (x >> 16);
}

static inline u32 next_word(u32 state)
{
	state ^= state << 13;
	state ^= state >> 17;
	return state ^ (state << 5);
}

static u32 first_state(u32 index, u32 gen) { return mix(index ^ mix(gen)) | 1; }

static void fill(u32 *page, u32 index, u32 gen)
{
	u32 state = first_state(index, gen), sum = 0;

	for (int i = HEADER; i < WORDS; i++)
		sum += page[i] = state = next_word(state);
	page[0] = index;
	page[1] = gen;
	page[2] = sum;
}

static int holds(const u32 *page, u32 index, u32 gen)
{
	u32 state = first_state(index, gen), sum = 0, wrong = 0;

	for (int i = HEADER; i < WORDS; i++) {
		sum += state = next_word(state);
		wrong |= page[i] ^ state;
	}
	return !wrong && page[0] == index && page[1] == gen && page[2] == sum;
}

static const char *kind_of(const u32 *page, u32 index)
{
	if (!holds(page, page[0], page[1]))
		return "corrupt";
	return page[0] == index ? "stale" : "misplaced";
}

static void note(u32 index, const char *what)
{
	if (!bad++) {
		first = index;
		kind = what;
	}
}

static void check_page(u32 index)
{
	if (generation[index] != ~twin[index])
		note(index, "table");
	else if (!holds(memory[index], index, generation[index]))
		note(index, kind_of(memory[index], index));
}

static void write_page(u32 index, u32 old)
{
	u32 gen = old + 1;

	fill(memory[index], index, gen);
	generation[index] = gen;
	twin[index] = ~gen;
	digest += mix(index ^ mix(gen)) - (old ? mix(index ^ mix(old)) : 0);
	writes++;
}

void oracle_write_next(void)
{
	u32 index = cursor++ % pages;

	check_page(index); /* a write must not heal what a migration broke */
	write_page(index, generation[index]);
}

void oracle_init(u32 mib)
{
	pages = mib * PAGES_PER_MIB;
	for (u32 i = 0; i < pages; i++)
		write_page(i, 0);
}

/* For the negative test: one bit of the page that is written last of all. */
void oracle_corrupt(void)
{
	memory[(cursor + pages - 1) % pages][WORDS / 2] ^= 1;
	print("corrupted\n");
}

void oracle_report(void)
{
	u32 caught = bad, total = 0, rolling = 0;

	for (u32 i = 0; i < pages; i++) {
		check_page(i);
		total += generation[i];
		rolling += mix(i ^ mix(generation[i]));
	}
	if (total != writes || rolling != digest)
		note(0, "total");
	if (bad) {
		print("oracle DIRTY first="), print_number(first);
		print(" kind="), print(kind);
		print(" bad="), print_number(bad);
	} else
		print("oracle clean");
	print(" pages="), print_number(pages);
	print(" writes="), print_number(writes);
	print("\n");
	bad = caught;
}

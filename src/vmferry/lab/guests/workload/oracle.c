/* The integrity oracle: proves that every page holds exactly what was written to it last.
 *
 * Each page carries its index, its generation (how often it was written) and a checksum, then content that
 * only (seed, index, generation) determine. What each page should hold is known from witnesses that live in
 * other pages of memory, so that no single lost or stale page can hide:
 *   - generation[i], the table;
 *   - twin[i], the same numbers inverted, in another mapping: a table page that is lost or stale disagrees;
 *   - writes and digest, a running total and a rolling checksum over (index, generation): they notice when
 *     table, twin and page are all stale together.
 * A page is verified before it is overwritten too: a write must not heal what a migration broke. What was
 * caught there is remembered for the next check.
 */
#include "workload.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define WORDS (PAGE / 8)
#define HEADER 3 /* words: index, generation, checksum */

static uint64_t (*memory)[WORDS];
static uint32_t *generation, *twin;
static uint64_t pages, writes, digest;
static struct verdict caught; /* by the verification before a write */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void oracle_lock(void) { pthread_mutex_lock(&lock); }
void oracle_unlock(void) { pthread_mutex_unlock(&lock); }
uint64_t oracle_pages(void) { return pages; }
uint64_t oracle_writes(void) { return writes; }

/* splitmix64's finaliser: neighbouring inputs give unrelated outputs. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static uint64_t key_of(uint64_t index, uint64_t gen)
{
	return mix(settings.seed ^ mix(index ^ mix(gen)));
}

/* The next content word; with compressible data three words in four repeat the page's first one. */
static inline uint64_t next_word(uint64_t *state, uint64_t key, unsigned i, bool compressible)
{
	if (compressible && (i & 3))
		return key;
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state;
}

static void fill(uint64_t *page, uint64_t index, uint64_t gen)
{
	uint64_t key = key_of(index, gen), state = key, sum = 0;
	bool compressible = settings.compressible;

	for (unsigned i = HEADER; i < WORDS; i++)
		sum += page[i] = next_word(&state, key, i, compressible);
	page[0] = index;
	page[1] = gen;
	page[2] = sum;
}

static bool holds(const uint64_t *page, uint64_t index, uint64_t gen)
{
	uint64_t key = key_of(index, gen), state = key, sum = 0, wrong = 0;
	bool compressible = settings.compressible;

	for (unsigned i = HEADER; i < WORDS; i++) {
		uint64_t word = next_word(&state, key, i, compressible);
		sum += word;
		wrong |= page[i] ^ word;
	}
	return !wrong && page[0] == index && page[1] == gen && page[2] == sum;
}

/* How a page that does not hold what it should came to be so, as far as the page itself tells. */
static const char *kind_of(const uint64_t *page, uint64_t index)
{
	uint64_t any = 0;

	for (unsigned i = 0; i < WORDS; i++)
		any |= page[i];
	if (!any)
		return "lost";
	if (!holds(page, page[0], page[1]))
		return "corrupt";
	return page[0] == index ? "stale" : "misplaced";
}

static void note(struct verdict *v, uint64_t index, const char *kind)
{
	if (v->bad++)
		return;
	v->first = index;
	v->kind = kind;
	v->expected_generation = generation[index];
	v->found_generation = memory[index][1];
}

static void check_page(struct verdict *v, uint64_t index)
{
	if (generation[index] != ~twin[index])
		note(v, index, "table");
	else if (!holds(memory[index], index, generation[index]))
		note(v, index, kind_of(memory[index], index));
}

void oracle_write(uint64_t index)
{
	check_page(&caught, index);
	uint32_t old = generation[index], gen = old + 1;
	fill(memory[index], index, gen);
	generation[index] = gen;
	twin[index] = ~gen;
	digest += mix(index ^ mix(gen)) - mix(index ^ mix(old));
	writes++;
}

static void *map(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED) {
		printf("workload: cannot map %zu bytes; give the guest more memory than mb= asks for\n", bytes);
		exit(1);
	}
	return at;
}

/* Every page is written once, so that the whole working set is in use before "ready". */
void oracle_init(void)
{
	pages = settings.mb << 8;
	memory = map(pages * PAGE);
	generation = map(pages * sizeof *generation);
	twin = map(pages * sizeof *twin);
	for (uint64_t i = 0; i < pages; i++) {
		fill(memory[i], i, 1);
		generation[i] = 1;
		twin[i] = ~1u;
		digest += mix(i ^ mix(1));
		writes++;
	}
}

struct verdict oracle_check(void)
{
	struct verdict v = caught;
	uint64_t total = 0, rolling = 0;

	for (uint64_t i = 0; i < pages; i++) {
		check_page(&v, i);
		total += generation[i];
		rolling += mix(i ^ mix(generation[i]));
	}
	if (total != writes || rolling != digest)
		note(&v, 0, "total");
	v.pages = pages;
	v.writes = writes;
	return v;
}

/* For negative tests: breaks the first page, or the witnesses about it, behind the oracle's back.
 * The table page is the 4 KiB that hold generation[0..1023]; "past" takes page, table and twin back together. */
bool oracle_corrupt(const char *how)
{
	if (!strcmp(how, "flip"))
		memory[0][WORDS / 2] ^= 1;
	else if (!strcmp(how, "stale"))
		fill(memory[0], 0, generation[0] - 1);
	else if (!strcmp(how, "lost"))
		memset(memory[0], 0, PAGE);
	else if (!strcmp(how, "misplaced"))
		memcpy(memory[0], memory[1], PAGE);
	else if (!strcmp(how, "table"))
		memset(generation, 0, PAGE);
	else if (!strcmp(how, "past")) {
		fill(memory[0], 0, --generation[0]);
		twin[0] = ~generation[0];
	} else
		return false;
	return true;
}

/* The line protocol, version 1, and its bounds. Nothing a host sends can do more than be answered with an error.
 *
 *   1 begin WRITES SLOT_MS MAX_STALL_MS LEASE_MS ID    ->  1 begun ID KEY=VALUE ...
 *   1 keep ID                                          ->  1 kept ID KEY=VALUE ...
 *   1 end ID                                           ->  1 ended ID KEY=VALUE ...
 *   1 status                                           ->  1 status ID|- KEY=VALUE ...
 *   anything else                                      ->  1 error CODE TEXT
 */
#include "throttle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool number(const char *text, unsigned least, unsigned most, unsigned *value)
{
	unsigned long n = 0;

	if (!text || !*text || strlen(text) > 6)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return false;
		n = n * 10 + (*text - '0');
	}
	*value = n;
	return n >= least && n <= most;
}

static bool identity(const char *text, char *id)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

	if (!text || !*text || strlen(text) > ID_MAX || strspn(text, allowed) != strlen(text))
		return false;
	strcpy(id, text);
	return true;
}

static const char *begin_fault(char **word, struct order *o)
{
	if (!number(word[2], 1, WRITES_MAX, &o->writes))
		return "range writes is 1 to 4096";
	if (!number(word[3], 1, 1000, &o->slot_ms))
		return "range slot_ms is 1 to 1000";
	if (!number(word[4], o->slot_ms, 10000, &o->max_stall_ms))
		return "range max_stall_ms is slot_ms to 10000";
	if (!number(word[5], 100, 60000, &o->lease_ms))
		return "range lease_ms is 100 to 60000";
	return NULL;
}

/* Takes a line apart, in place. On VERB_BAD `why` is "CODE TEXT". */
enum verb protocol_parse(char *line, struct order *o, const char **why)
{
	static const struct { const char *name; enum verb verb; unsigned words; } known[] = {
		{"begin", VERB_BEGIN, 7}, {"keep", VERB_KEEP, 3}, {"end", VERB_END, 3}, {"status", VERB_STATUS, 2}};
	char *word[8] = {0}, *rest = line;
	unsigned words = 0;

	while (words < 8 && (word[words] = strsep(&rest, " ")))
		words++;
	*why = "version this helper speaks version 1";
	if (!word[0] || strcmp(word[0], "1"))
		return VERB_BAD;
	*why = "command known are begin, keep, end and status";
	for (size_t i = 0; word[1] && i < sizeof known / sizeof *known; i++) {
		if (strcmp(word[1], known[i].name))
			continue;
		*why = "words this command has another number of words";
		if (words != known[i].words)
			return VERB_BAD;
		*why = known[i].verb == VERB_BEGIN ? begin_fault(word, o) : NULL;
		if (!*why && words > 2 && !identity(word[words - 1], o->id))
			*why = "id is 1 to 64 of A-Z a-z 0-9 . _ -";
		return *why ? VERB_BAD : known[i].verb;
	}
	return VERB_BAD;
}

void protocol_figures(char *line, size_t size, const char *word, const char *id, const struct figures *f)
{
	snprintf(line, size,
		 "1 %s %s processes=%u uncovered=%u covered_kib=%lu faults=%lu holds=%lu overruns=%lu errors=%lu"
		 " slots=%lu longest_hold_us=%lu\n",
		 word, id, f->processes, f->uncovered, f->covered_bytes >> 10, f->faults, f->holds, f->overruns,
		 f->errors, f->slots, f->longest_hold_ns / 1000);
}

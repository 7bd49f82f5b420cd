/* vmferry-throttle: what its parts promise each other.
 *
 * A helper in the guest starts a command and leaves it alone until the host says that a migration runs. Then every
 * process of the command gets a userfaultfd of its own, all its private anonymous memory is write-protected, and each
 * page that is written costs a fault that this program answers: at once for the first `writes` pages of a slot, in the
 * next slot for the rest. When the host says "end", when it falls silent, when the channel breaks and when this program
 * dies, the descriptors are closed and the kernel lets everything go.
 *
 * One thread, two epoll sets. The inner one (faults and the slot's clock, `pump`) is also run while something takes
 * long, so that nobody waits for it; the outer one has the channel and the signals. Only the outer loop forgets
 * processes: within `pump` they are at most marked dead.
 */
#ifndef VMFERRY_THROTTLE_H
#define VMFERRY_THROTTLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE 4096ull
#define NS_PER_MS 1000000ull
#define LINE_MAX_BYTES 255
#define ID_MAX 64
#define WRITES_MAX 4096u

/* What the host asks for; bounds are checked by protocol.c. */
struct order {
	char id[ID_MAX + 1];
	unsigned writes;       /* pages per slot and process */
	unsigned slot_ms;
	unsigned max_stall_ms; /* no write is held longer, whatever the budget says; never below slot_ms */
	unsigned lease_ms;     /* without a word from the host for so long, everything is let go */
};

struct figures {
	uint64_t faults, holds, overruns, errors, longest_hold_ns, slots;
	uint64_t covered_bytes;
	unsigned processes, uncovered;
};

struct range { uint64_t start, end; };
struct ranges { struct range *at; size_t count, room; };
struct numbers { uint64_t *at; size_t count, room; };

struct fault { uint64_t page, arrived_ns; bool missing; };

/* NEW -> SEIZED -> COVERED; SKIPPED processes run unthrottled and are counted. */
enum state { NEW, SEIZED, COVERED, SKIPPED, DEAD };

struct process {
	struct process *next;
	pid_t pid, seized;       /* seized: the thread that ptrace holds */
	enum state state;
	bool found;              /* by the present scan */
	bool again;              /* it could not be taken this time, the next scan will try */
	int uffd;
	struct ranges covered;   /* private anonymous memory as the last look at it found it */
	uint64_t covered_bytes, sizes;
	struct numbers exempt;   /* pages that the kernel writes when a thread ends */
	struct numbers written;  /* pages let go in this slot: to be protected again */
	unsigned used;           /* of the slot's budget */
	struct fault *held;
	size_t holding, held_room;
	unsigned looks;
	const char *why;         /* of SKIPPED */
};

/* protocol.c */
enum verb { VERB_BAD, VERB_BEGIN, VERB_KEEP, VERB_END, VERB_STATUS };
enum verb protocol_parse(char *line, struct order *order, const char **why);
void protocol_figures(char *line, size_t size, const char *word, const char *id, const struct figures *f);

/* channel.c */
extern int channel_fd;
void channel_use(int fd);
bool channel_find(void);
bool channel_read(void (*handle)(char *line), bool *heard);
void channel_say(const char *line);

/* proc.c: what /proc says; nothing here fails loudly, a process may be gone at any time */
void tree_of(pid_t root, struct numbers *pids);
bool children_of(pid_t pid, struct numbers *pids);
void threads_of(pid_t pid, struct numbers *tids);
bool anonymous_ranges(pid_t pid, struct ranges *ranges, struct numbers *stack_tops, struct range *vdso);
uint64_t sizes_of(pid_t pid);
long status_field(pid_t pid, const char *key);
void add_number(struct numbers *numbers, uint64_t number);
bool has_number(const struct numbers *numbers, uint64_t number);

/* inject.c */
int inject_userfaultfd(pid_t pid, pid_t tid, const char **why);

/* guard.c: one process under protection */
bool guard_open(struct process *p);
void guard_look(struct process *p);
void guard_close(struct process *p);
int protect(struct process *p, uint64_t start, uint64_t end, bool on);
int protect_some(struct process *p, uint64_t start, uint64_t end);

/* slot.c: its faults and its budget */
void guard_faults(struct process *p);
void guard_slot(struct process *p);

/* herd.c: all processes, and the order that is in force */
extern struct process *herd;
extern struct order order;
extern struct figures figures;
extern bool running;
void herd_begin(void);
void herd_end(void);
void herd_scan(void);
void herd_stopped(pid_t tid, int status);
unsigned herd_pending(void);
void herd_count(void);

/* loop.c */
void pump(int timeout_ms);
void loop_watch(struct process *p);
void loop_clock(unsigned slot_ms);
uint64_t now_ns(void);
int loop_run(pid_t command);
void loop_exited(pid_t pid, int status);

#endif

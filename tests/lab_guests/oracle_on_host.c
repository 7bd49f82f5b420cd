/* Runs the linux guest's oracle as an ordinary program: argv[1] says how to corrupt, "then-write" in argv[2] writes
 * the corrupted page once more before the check. Prints "kind bad". */
#include "workload.h"

#include <stdio.h>
#include <string.h>

struct settings settings = {.mb = 8, .seed = 7};

int main(int argc, char **argv)
{
	settings.compressible = argc > 3;
	oracle_init();
	for (unsigned i = 0; i < 5000; i++)
		oracle_write(i * 7 % oracle_pages());
	if (argc > 1 && strcmp(argv[1], "not") && !oracle_corrupt(argv[1]))
		return 2;
	if (argc > 2 && !strcmp(argv[2], "then-write"))
		oracle_write(0);
	struct verdict v = oracle_check();
	printf("%s %lu %lu\n", v.kind ? v.kind : "clean", v.bad, v.writes);
	return 0;
}

/*
 * hold COMMON OWN SEED: memory that is held, and read again and again.
 *
 * Fills COMMON bytes (K, M or G may follow the numbers) with what every holder fills them with, and OWN bytes with what depends
 * on SEED. Prints "hold: ready", then reads all of it in rounds, two a second at the most, and says every second how many there
 * were; ends only when a word is not what it was, and says which.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "tools.h"

#define WORDS_PER_PAGE 512

int hold_main(int argc, char **argv)
{
	size_t common = argc == 4 ? parse_size(argv[1]) : 0, own = argc == 4 ? parse_size(argv[2]) : 0;
	uint64_t common_pages = common / 4096, pages = common_pages + own / 4096, rounds = 0;
	uint64_t seed = argc == 4 ? strtoull(argv[3], NULL, 10) + 1 : 0;
	volatile uint64_t *memory;
	const struct timespec pause = { .tv_nsec = 500000000 };
	time_t said;

	if (!common || !own) {
		fprintf(stderr, "usage: hold COMMON[K|M|G] OWN[K|M|G] SEED\n");
		return 2;
	}
	memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		perror("hold: mmap");
		return 1;
	}
	for (uint64_t page = 0; page < pages; page++)
		for (unsigned i = 0; i < WORDS_PER_PAGE; i++)
			memory[page * WORDS_PER_PAGE + i] = pattern_word(page, page < common_pages ? 0 : seed, i);
	printf("hold: ready, %llu pages\n", (unsigned long long)pages);
	fflush(stdout);
	said = time(NULL);
	for (;;) {
		for (uint64_t page = 0; page < pages; page++) {
			for (unsigned i = 0; i < WORDS_PER_PAGE; i++) {
				uint64_t found = memory[page * WORDS_PER_PAGE + i];

				if (found != pattern_word(page, page < common_pages ? 0 : seed, i)) {
					printf("hold: BAD page %llu word %u: %016llx\n", (unsigned long long)page, i,
					       (unsigned long long)found);
					return 1;
				}
			}
		}
		rounds++;
		nanosleep(&pause, NULL);
		if (time(NULL) > said) {
			said = time(NULL);
			printf("hold: %llu rounds OK\n", (unsigned long long)rounds);
			fflush(stdout);
		}
	}
}

/*
 * hog SIZE [SECONDS]: memory that is used, and checked.
 *
 * Fills SIZE (K, M or G may follow the number) with a pattern every word of which depends on its page and on how often
 * that page was written, rewrites pages in turn for SECONDS (at least one round), then compares all of it. Prints
 * "hog: sum OK" or the first bad word, and says so in its exit status.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "tools.h"

#define WORDS_PER_PAGE 512

static void fill(volatile uint64_t *memory, uint64_t page, uint64_t round)
{
	for (unsigned i = 0; i < WORDS_PER_PAGE; i++)
		memory[page * WORDS_PER_PAGE + i] = pattern_word(page, round, i);
}

int hog_main(int argc, char **argv)
{
	size_t size = argc > 1 ? parse_size(argv[1]) : 0;
	uint64_t pages = size / 4096, rounds = 0;
	time_t deadline = time(NULL) + (argc > 2 ? atol(argv[2]) : 0);
	volatile uint64_t *memory;

	if (!pages) {
		fprintf(stderr, "usage: hog SIZE[K|M|G] [SECONDS]\n");
		return 2;
	}
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		perror("hog: mmap");
		return 1;
	}
	for (uint64_t page = 0; page < pages; page++)
		fill(memory, page, 0);
	do {
		rounds++;
		for (uint64_t page = 0; page < pages; page++)
			fill(memory, page, rounds);
	} while (time(NULL) < deadline);

	for (uint64_t page = 0; page < pages; page++) {
		for (unsigned i = 0; i < WORDS_PER_PAGE; i++) {
			uint64_t found = memory[page * WORDS_PER_PAGE + i];
			uint64_t expected = pattern_word(page, rounds, i);

			if (found != expected) {
				printf("hog: sum BAD page %llu word %u: expected %016llx, found %016llx\n",
				       (unsigned long long)page, i, (unsigned long long)expected,
				       (unsigned long long)found);
				return 1;
			}
		}
	}
	printf("hog: sum OK, %llu pages, %llu rounds\n", (unsigned long long)pages, (unsigned long long)rounds);
	return 0;
}

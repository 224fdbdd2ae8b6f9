/*
 * blocks DEVICE SIZE SECONDS direct|cached: a disk that is written and read, each block of which is compared.
 *
 * Writes SIZE (K, M or G may follow the number) of DEVICE in blocks of 64 KiB whose words depend on the block and on how often
 * it was written, then reads and compares blocks at random for SECONDS, three of four times, and writes them anew otherwise; in
 * the end it reads all. direct is past the page cache; cached is through it, and what was written is brought to the disk every
 * 16 blocks. Prints "blocks: written", a line every second with how much was done so far, "blocks: OK" with the times that reads
 * took, or the first bad word.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tools.h"

#define BLOCK 65536
#define WORDS (BLOCK / 8)
#define BLOCKS_PER_SYNC 16
#define READS_MOST 1000000

static uint64_t *buffer;
static int device;
static int is_cached;
static unsigned unsynced;

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ull + now.tv_nsec / 1000;
}

static int put(uint64_t block, uint64_t round)
{
	for (unsigned i = 0; i < WORDS; i++)
		buffer[i] = pattern_word(block, round, i);
	if (pwrite(device, buffer, BLOCK, block * BLOCK) != BLOCK) {
		perror("blocks: write");
		return 1;
	}
	if (is_cached && ++unsynced % BLOCKS_PER_SYNC == 0 && fdatasync(device)) {
		perror("blocks: fdatasync");
		return 1;
	}
	return 0;
}

static int get(uint64_t block, uint64_t round)
{
	if (pread(device, buffer, BLOCK, block * BLOCK) != BLOCK) {
		perror("blocks: read");
		return 1;
	}
	for (unsigned i = 0; i < WORDS; i++) {
		uint64_t expected = pattern_word(block, round, i);

		if (buffer[i] != expected) {
			printf("blocks: BAD block %llu word %u: expected %016llx, found %016llx\n",
			       (unsigned long long)block, i, (unsigned long long)expected,
			       (unsigned long long)buffer[i]);
			return 1;
		}
	}
	return 0;
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

int blocks_main(int argc, char **argv)
{
	uint64_t blocks = argc == 5 ? parse_size(argv[2]) / BLOCK : 0, seconds = argc == 5 ? atol(argv[3]) : 0;
	uint64_t begun, said, end, now, reads = 0, writes = 0, random = 1;
	uint16_t *rounds = calloc(blocks + 1, sizeof(*rounds));
	uint32_t *times_us = malloc(READS_MOST * sizeof(*times_us));

	is_cached = argc == 5 && !strcmp(argv[4], "cached");
	if (!blocks || !rounds || !times_us || (!is_cached && strcmp(argv[4], "direct"))) {
		fprintf(stderr, "usage: blocks DEVICE SIZE[K|M|G] SECONDS direct|cached\n");
		return 2;
	}
	device = open(argv[1], O_RDWR | (is_cached ? 0 : O_DIRECT));
	buffer = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (device < 0 || buffer == MAP_FAILED) {
		perror("blocks");
		return 1;
	}
	for (uint64_t block = 0; block < blocks; block++)
		if (put(block, 0))
			return 1;
	printf("blocks: written, %llu blocks\n", (unsigned long long)blocks);
	fflush(stdout);
	begun = said = now = now_us();
	end = begun + seconds * 1000000;
	while (now < end && reads < READS_MOST) {
		uint64_t choice = pattern_word(random++, 1, 0), block = choice / 4 % blocks, started = now;

		if (choice % 4 == 0) {
			if (put(block, ++rounds[block]))
				return 1;
			writes++;
		} else {
			if (get(block, rounds[block]))
				return 1;
		}
		now = now_us();
		if (choice % 4)
			times_us[reads++] = now - started;
		if (now >= said + 1000000) {
			said = now;
			printf("blocks: %llu read, %llu written, %llu ms\n", (unsigned long long)reads,
			       (unsigned long long)writes, (unsigned long long)(now - begun) / 1000);
			fflush(stdout);
		}
	}
	for (uint64_t block = 0; block < blocks; block++)
		if (get(block, rounds[block]))
			return 1;
	qsort(times_us, reads, sizeof(*times_us), by_size);
	printf("blocks: OK, %llu read, %llu written, %llu ms, read p50 %u us, p99 %u us\n", (unsigned long long)reads,
	       (unsigned long long)writes, (unsigned long long)(now - begun) / 1000, times_us[reads / 2],
	       times_us[reads * 99 / 100]);
	return 0;
}

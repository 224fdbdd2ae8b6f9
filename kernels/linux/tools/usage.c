/*
 * usage SECONDS: what the guest does, said every so many seconds for as long as it runs.
 *
 * A line has milliseconds since boot, of those the ones not idle (/proc/stat: proc_stat(5)), KiB paged in and out from and to
 * the guest's own swap (/proc/vmstat), and KiB that are available and that are in that swap (/proc/meminfo). One program that keeps
 * its files open, because each fork is dear where the guest's kernel is interpreted.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tools.h"

static char text[16384];

/* All of a file that is open, as text. */
static const char *all(int fd)
{
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = 0;
	return text;
}

/* The number behind a name at the beginning of a line; 0 where there is none. */
static unsigned long long value(const char *found, const char *name)
{
	size_t length = strlen(name);

	while (found && strncmp(found, name, length)) {
		found = strchr(found, '\n');
		found += !!found;
	}
	return found ? strtoull(found + length, NULL, 10) : 0;
}

int usage_main(int argc, char **argv)
{
	long seconds = argc == 2 ? atol(argv[1]) : 0;
	int stat = open("/proc/stat", O_RDONLY), vmstat = open("/proc/vmstat", O_RDONLY);
	int meminfo = open("/proc/meminfo", O_RDONLY);
	long tick_ms = 1000 / sysconf(_SC_CLK_TCK);

	if (seconds < 1 || stat < 0 || vmstat < 0 || meminfo < 0) {
		fprintf(stderr, "usage: usage SECONDS\n");
		return 2;
	}
	for (;;) {
		/* Of the first CPU, which is the only one: user, nice, system, idle, iowait, irq, softirq. */
		unsigned long long spent[7] = { 0 }, in, out, available, swapped;
		struct timespec up;

		sscanf(all(stat), "cpu %llu %llu %llu %llu %llu %llu %llu", &spent[0], &spent[1], &spent[2],
		       &spent[3], &spent[4], &spent[5], &spent[6]);
		all(vmstat);
		in = value(text, "pswpin ") * 4;
		out = value(text, "pswpout ") * 4;
		all(meminfo);
		available = value(text, "MemAvailable:");
		swapped = value(text, "SwapTotal:") - value(text, "SwapFree:");
		clock_gettime(CLOCK_BOOTTIME, &up);
		printf("usage: %llu ms, busy %llu ms, in %llu KiB, out %llu KiB, available %llu KiB, swapped %llu KiB\n",
		       up.tv_sec * 1000ull + up.tv_nsec / 1000000,
		       (spent[0] + spent[1] + spent[2] + spent[5] + spent[6]) * tick_ms, in, out, available, swapped);
		fflush(stdout);
		sleep(seconds);
	}
}

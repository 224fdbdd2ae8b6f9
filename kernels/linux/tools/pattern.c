/* Content that can be told again, for programs that use memory and check it. */
#include <stdlib.h>

#include "tools.h"

/* splitmix64 */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

uint64_t pattern_word(uint64_t page, uint64_t salt, unsigned i)
{
	return mix(mix(page) ^ (salt << 40) ^ i);
}

size_t parse_size(const char *text)
{
	char *end;
	unsigned long long n = strtoull(text, &end, 10);

	switch (*end) {
	case 'G':
		n <<= 10; /* fall through */
	case 'M':
		n <<= 10; /* fall through */
	case 'K':
		n <<= 10;
		end++;
	}
	return *end ? 0 : n;
}

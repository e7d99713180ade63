#include <stdlib.h>

/* Counts the primes up to n; -1 if there is no memory. */
long count_primes(long n) {
    char *composite = calloc(n + 1, 1);
    long count = 0;
    if (!composite) return -1;
    for (long i = 2; i <= n; i++) {
        if (composite[i]) continue;
        count++;
        for (long j = i * i; j <= n; j += i) composite[j] = 1;
    }
    free(composite);
    return count;
}

#include <stdio.h>
#include <stdlib.h>

long count_primes(long n);

int main(int argc, char **argv) {
    long n = argc > 1 ? atol(argv[1]) : 100;
    printf("%ld primes up to %ld\n", count_primes(n), n);
    return 0;
}

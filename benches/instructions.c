/* One combination of 5 tensors, or their inner products, twice: what `make bench-arm64` counts the instructions of.

       instructions ELEMENTS CODE BITS lincomb|gram    CODE and BITS as in lmsd_dtype */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lmsd.h"

enum { TERMS = 5, LARGEST = 1 << 14 };

int main(int argc, char **argv) {
    static double memory[TERMS + 1][LARGEST];
    const double factors[TERMS] = {1, 2, 3, 4, 5};
    const void *terms[TERMS];
    lmsd_tensor tensors[TERMS + 1];
    double gram[TERMS * TERMS];
    if (argc != 5 || atol(argv[1]) > LARGEST) return fprintf(stderr, "see the first lines of the source\n"), 2;
    const int64_t shape[] = {1, atol(argv[1])};
    memset(memory, 0x11, sizeof memory);
    for (int i = 0; i <= TERMS; i++) {
        const lmsd_dtype dtype = {(uint8_t)atoi(argv[2]), (uint8_t)atoi(argv[3]), 1};
        tensors[i] = (lmsd_tensor){memory[i], {LMSD_DEVICE_CPU, 0}, 2, dtype, shape, NULL, 0};
        if (i < TERMS) terms[i] = &tensors[i];
    }
    for (int twice = 0; twice < 2; twice++) {
        const int status = strcmp(argv[4], "gram") == 0
                               ? lmsd_gram(NULL, TERMS, terms, TERMS * TERMS, gram)
                               : lmsd_lincomb(NULL, TERMS, factors, terms, &tensors[TERMS]);
        if (status != LMSD_STATUS_OK) return fprintf(stderr, "%s\n", lmsd_last_error()), 1;
    }
    return 0;
}

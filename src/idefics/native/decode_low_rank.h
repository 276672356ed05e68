/* What adapters add to the outputs of linear layers: b(a(x)) for the rows that use them. A stage before that of the
 * layers computes a(x) into `low_rank`. */

/* The rows from `row` on that have the same adapter. */
INLINE Rows find_run(const Step *step, int row) {
    Rows rows = {row, row + 1};
    while (rows.end < step->rows && step->adapters[rows.end] == step->adapters[row]) rows.end++;
    return rows;
}

/* Outputs `from` to `to` of the first factors, as if those of all layers were one. */
static void multiply_first_factors(Engine *e, const LowRankTerms *terms, const PreparedInputs *x, int from, int to) {
    for (Rows rows = {0, 0}; rows.end < e->step->rows;) {
        rows = find_run(e->step, rows.end);
        int adapter = e->step->adapters[rows.first], start = 0;
        for (int i = 0; adapter >= 0 && i < 3; i++) {
            const Linear *a = &terms[adapter].terms[i].a;
            int end = start + a->outputs, first = from > start ? from : start, last = to < end ? to : end;
            if (first < last)
                multiply_outputs(a, FLOAT32, 0, rows, x, first - start, last - start, e->low_rank + first,
                                 e->low_rank_width);
            start = end;
        }
    }
}

/* Adds the products of h, `rank` numbers, with a second factor to outputs `from` to `to`, which begin at `out`. */
INLINE void add_products(const float *b, const float *h, int rank, int from, int to, float *out) {
    int first = from / FACTOR_BLOCK * FACTOR_BLOCK;
    const float *block = b + (size_t)first * (size_t)rank;
    for (int o = first; o < to; o += FACTOR_BLOCK, block += (size_t)rank * FACTOR_BLOCK) {
        F sums[FACTOR_BLOCK / LANES] = {{0}};
        float totals[FACTOR_BLOCK];
        for (int j = 0; j < rank; j++) {
            __builtin_prefetch(block + (j + 4 * rank) * FACTOR_BLOCK);
            UNROLL for (int i = 0; i < FACTOR_BLOCK / LANES; i++)
                sums[i] += h[j] * load(block + j * FACTOR_BLOCK + i * LANES);
        }
        memcpy(totals, sums, sizeof totals);
        int skipped = from > o ? from - o : 0, count = to - o < FACTOR_BLOCK ? to - o : FACTOR_BLOCK;
        for (int i = skipped; i < count; i++) out[o + i - from] += totals[i];
    }
}

/* Adds the products of the second factors to outputs `from` to `to` of the layer number `index` of a stage:
 * out[row * stride + o - from]. */
static void add_second_factors(Engine *e, const Stage *stage, int index, int from, int to, float *out, int stride) {
    if (!stage->terms || !e->step->adapters) return;
    for (int row = 0; row < e->step->rows; row++) {
        int adapter = e->step->adapters[row];
        if (adapter < 0) continue;
        const LowRankTerm *terms = stage->terms[adapter].terms;
        const float *h = e->low_rank + (size_t)row * (size_t)e->low_rank_width;
        for (int i = 0; i < index; i++) h += terms[i].a.outputs;
        add_products(terms[index].b, h, terms[index].a.outputs, from, to, out + (size_t)row * (size_t)stride);
    }
}

/* Outputs `from` to `to` of a stage's layers, as if they were one layer with all their outputs. */
static void multiply_concatenated(Engine *e, const Stage *stage, const Linear *const *layers, int count,
                                  const PreparedInputs *x, int from, int to, float *out, int stride) {
    int start = 0;
    for (int i = 0; i < count; i++) {
        int end = start + layers[i]->outputs, first = from > start ? from : start, last = to < end ? to : end;
        if (first < last) {
            multiply(layers[i], e->step->rows, x, first - start, last - start, out + first, stride);
            add_second_factors(e, stage, i, first - start, last - start, out + first, stride);
        }
        start = end;
    }
}

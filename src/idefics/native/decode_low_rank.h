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
                                 e->low_rank_width, 0);
            start = end;
        }
    }
}

/* Adds the products of the second factors to outputs `from` to `to` of the layer number `index` of a stage:
 * out[row * stride + o - from]. */
static void add_second_factors(Engine *e, const LowRankTerms *terms, int index, int from, int to, float *out,
                               int stride) {
    if (!terms || !e->step->adapters) return;
    for (Rows rows = {0, 0}; rows.end < e->step->rows;) {
        rows = find_run(e->step, rows.end);
        int adapter = e->step->adapters[rows.first];
        if (adapter < 0 || !terms[adapter].terms[index].a.outputs) continue;
        PreparedInputs low_rank = {.plain = e->low_rank, .stride = e->low_rank_width};
        for (int i = 0; i < index; i++) low_rank.plain += terms[adapter].terms[i].a.outputs;
        multiply_outputs(&terms[adapter].terms[index].b, FLOAT32, 0, rows, &low_rank, from, to, out, stride, 1);
    }
}

/* Outputs `from` to `to` of the layers of a stage with the same inputs, as if they were one layer: out[row * stride +
 * o].
 */
static void multiply_concatenated(Engine *e, const Stage *stage, const Linear *const *layers, int count,
                                  const PreparedInputs *x, int from, int to, float *out, int stride) {
    int start = 0;
    for (int i = 0; i < count; i++) {
        int end = start + layers[i]->outputs, first = from > start ? from : start, last = to < end ? to : end;
        if (first < last) {
            multiply(layers[i], e->step->rows, x, first - start, last - start, out + first, stride);
            add_second_factors(e, stage->terms, i, first - start, last - start, out + first, stride);
        }
        start = end;
    }
}

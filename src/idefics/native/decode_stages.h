/* The stages of a step, compiled once for each instruction set.
 *
 * Before this file is included: STAGE_FUNCTION (the name of the function it defines), VECTOR_BYTES, ROW_TILE (rows that
 * are multiplied together), `decode_vector.h`, and then sum, load_partial_bytes, dot_int8, dot_int4, broadcast_scales,
 * broadcast_bfloat16_scales and load_float16.
 */
#include "decode_linear.h"
#include "decode_attention.h"

/* gate = activation(gate) * up, for n numbers. */
static void activate(float *gate, const float *up, int n, int activation) {
    switch (activation) {
    case SILU:
        for (int i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
        break;
    case GELU:
        for (int i = 0; i < n; i++) gate[i] = 0.5f * gate[i] * (1.0f + erff(gate[i] * 0.70710678f)) * up[i];
        break;
    case GELU_TANH: /* arXiv 1606.08415 */
        for (int i = 0; i < n; i++) {
            float inner = 0.79788456f * (gate[i] + 0.044715f * gate[i] * gate[i] * gate[i]);
            gate[i] = 0.5f * gate[i] * (1.0f + tanhf(inner)) * up[i];
        }
        break;
    default:
        for (int i = 0; i < n; i++) gate[i] = gate[i] > 0 ? gate[i] * up[i] : 0;
    }
}

enum { OUTPUT_BLOCK = 64 }; /* outputs of a layer that are computed before they are used */

/* Adds a layer's outputs, times `gate` if given, to the residual stream. */
static void add_to_residual(Engine *e, ThreadScratch *t, const Linear *l, int from, int to, const float *gate) {
    float out[MAX_ROWS * OUTPUT_BLOCK];
    for (int o = from; o < to; o += OUTPUT_BLOCK) {
        int count = to - o < OUTPUT_BLOCK ? to - o : OUTPUT_BLOCK;
        multiply(l, e->step->rows, &t->inputs, o, o + count, out, OUTPUT_BLOCK);
        for (int row = 0; row < e->step->rows; row++) {
            float *x = e->x + (size_t)row * (size_t)e->model->width + o;
            for (int i = 0; i < count; i++)
                x[i] += gate ? gate[o + i] * out[row * OUTPUT_BLOCK + i] : out[row * OUTPUT_BLOCK + i];
        }
    }
}

/* The hidden units `from` to `to` of an MLP. */
static void gate_up_activate(Engine *e, ThreadScratch *t, const Mlp *mlp, int from, int to) {
    float gate[MAX_ROWS * OUTPUT_BLOCK], up[MAX_ROWS * OUTPUT_BLOCK];
    for (int o = from; o < to; o += OUTPUT_BLOCK) {
        int count = to - o < OUTPUT_BLOCK ? to - o : OUTPUT_BLOCK;
        multiply(&mlp->gate, e->step->rows, &t->inputs, o, o + count, gate, OUTPUT_BLOCK);
        multiply(&mlp->up, e->step->rows, &t->inputs, o, o + count, up, OUTPUT_BLOCK);
        for (int row = 0; row < e->step->rows; row++) {
            activate(gate + row * OUTPUT_BLOCK, up + row * OUTPUT_BLOCK, count, e->model->activation);
            memcpy(e->mlp_hidden + (size_t)row * (size_t)mlp->gate.outputs + o, gate + row * OUTPUT_BLOCK,
                   (size_t)count * sizeof *gate);
        }
    }
}

/* Runs units `from` to `to` of a stage. A unit is OUTPUTS_PER_UNIT outputs, or the attention of a head of a row to one
 * split or image. */
void STAGE_FUNCTION(Engine *e, ThreadScratch *t, int index, int from, int to) {
    const Model *m = e->model;
    Stage stage = e->stages[index];
    int rows = e->step->rows, inner = m->heads * m->head_size, all = inner + 2 * m->kv_heads * m->head_size;
    const Layer *layer = m->layers + stage.layer;
    const CrossLayer *cross = m->crosses + stage.layer;
    const Mlp *mlp = stage.kind == CROSS_UP || stage.kind == CROSS_DOWN ? &cross->mlp : &layer->mlp;
    const Linear *linears[3];
    if (stage.kind == ATTEND) {
        for (int u = from; u < to; u++) {
            int row = u / (m->kv_heads * e->num_kv_splits), rest = u % (m->kv_heads * e->num_kv_splits);
            attend_kv_split(e, t, layer, row, rest % m->kv_heads, rest / m->kv_heads);
        }
        return;
    }
    if (stage.kind == CROSS_ATTEND) {
        for (int u = from; u < to; u++) cross_attend_head(e, t, cross, stage.layer, u / m->heads, u % m->heads);
        return;
    }
    from *= OUTPUTS_PER_UNIT, to *= OUTPUTS_PER_UNIT;
    int most = num_outputs(m, stage);
    to = to < most ? to : most;
    switch (stage.kind) {
    case CROSS_Q:
        linears[0] = &cross->q;
        prefetch_weights(linears, 1, from);
        prepare_inputs(e, t, index, e->x, m->width, cross->norm, 1u << cross->q.kind);
        multiply(&cross->q, rows, &t->inputs, from, to, e->qkv + from, inner);
        break;
    case CROSS_O:
        linears[0] = &cross->o;
        prefetch_weights(linears, 1, from);
        prepare_inputs(e, t, index, e->attention_out, inner, NULL, 1u << cross->o.kind);
        add_to_residual(e, t, &cross->o, from, to, cross->gate);
        break;
    case QKV:
        linears[0] = &layer->q, linears[1] = &layer->k, linears[2] = &layer->v;
        prefetch_weights(linears, 3, from);
        prepare_inputs(e, t, index, e->x, m->width, layer->norm, kind_mask(linears, 3));
        multiply_concatenated(linears, 3, rows, &t->inputs, from, to, e->qkv, all);
        break;
    case O:
        linears[0] = &layer->o;
        prefetch_weights(linears, 1, from);
        prepare_inputs(e, t, index, e->attention_out, inner, NULL, 1u << layer->o.kind);
        add_to_residual(e, t, &layer->o, from, to, NULL);
        break;
    case CROSS_UP:
    case UP:
        linears[0] = &mlp->gate, linears[1] = &mlp->up;
        prefetch_weights(linears, 1, from), prefetch_weights(linears + 1, 1, from);
        prepare_inputs(e, t, index, e->x, m->width, stage.kind == UP ? layer->mlp_norm : cross->mlp_norm,
                       kind_mask(linears, 2));
        gate_up_activate(e, t, mlp, from, to);
        break;
    case CROSS_DOWN:
    case DOWN:
        linears[0] = &mlp->down;
        prefetch_weights(linears, 1, from);
        prepare_inputs(e, t, index, e->mlp_hidden, mlp->down.inputs, NULL, 1u << mlp->down.kind);
        add_to_residual(e, t, &mlp->down, from, to, stage.kind == DOWN ? NULL : cross->mlp_gate);
        break;
    default: /* HEAD */
        linears[0] = &m->lm_heads[0], linears[1] = &m->lm_heads[1];
        prefetch_weights(linears, m->table_count, from);
        prepare_inputs(e, t, index, e->x, m->width, m->norm, kind_mask(linears, m->table_count));
        multiply_concatenated(linears, m->table_count, rows, &t->inputs, from, to, e->step->logits, most);
    }
}

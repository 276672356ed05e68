/* The stages of a step, compiled once for each instruction set.
 *
 * Before this file is included: STAGE_FUNCTION (the name of the function it defines), VECTOR_BYTES, ROW_TILE (rows that
 * are multiplied together), `decode_vector.h`, and then sum, load_partial_bytes, dot_int8, dot_int4, broadcast_scales,
 * broadcast_bfloat16_scales and load_float16.
 */
#include "decode_linear.h"
#include "decode_attention.h"
#include "decode_low_rank.h"

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

/* Where the gate of a row's adapter begins. */
static size_t gate_offset(const Engine *e, int row) {
    return e->step->adapters ? (size_t)(e->step->adapters[row] + 1) * (size_t)e->model->width : 0;
}

/* Adds a layer's outputs, times `gate` if given, to the residual stream. */
static void add_to_residual(Engine *e, ThreadScratch *t, const Stage *stage, const Linear *l, int from, int to,
                            const float *gate) {
    float out[MAX_ROWS * OUTPUT_BLOCK];
    for (int o = from; o < to; o += OUTPUT_BLOCK) {
        int count = to - o < OUTPUT_BLOCK ? to - o : OUTPUT_BLOCK;
        multiply(l, e->step->rows, &t->inputs, o, o + count, out, OUTPUT_BLOCK);
        add_second_factors(e, stage, 0, o, o + count, out, OUTPUT_BLOCK);
        for (int row = 0; row < e->step->rows; row++) {
            float *x = e->x + (size_t)row * (size_t)e->model->width + o;
            const float *row_gate = gate ? gate + gate_offset(e, row) + o : NULL;
            for (int i = 0; i < count; i++)
                x[i] += row_gate ? row_gate[i] * out[row * OUTPUT_BLOCK + i] : out[row * OUTPUT_BLOCK + i];
        }
    }
}

/* The hidden units `from` to `to` of an MLP. */
static void gate_up_activate(Engine *e, ThreadScratch *t, const Stage *stage, const Mlp *mlp, int from, int to) {
    float gate[MAX_ROWS * OUTPUT_BLOCK], up[MAX_ROWS * OUTPUT_BLOCK];
    for (int o = from; o < to; o += OUTPUT_BLOCK) {
        int count = to - o < OUTPUT_BLOCK ? to - o : OUTPUT_BLOCK;
        multiply(&mlp->gate, e->step->rows, &t->inputs, o, o + count, gate, OUTPUT_BLOCK);
        add_second_factors(e, stage, 0, o, o + count, gate, OUTPUT_BLOCK);
        multiply(&mlp->up, e->step->rows, &t->inputs, o, o + count, up, OUTPUT_BLOCK);
        add_second_factors(e, stage, 1, o, o + count, up, OUTPUT_BLOCK);
        for (int row = 0; row < e->step->rows; row++) {
            activate(gate + row * OUTPUT_BLOCK, up + row * OUTPUT_BLOCK, count, e->model->activation);
            memcpy(e->mlp_hidden + (size_t)row * (size_t)mlp->gate.outputs + o, gate + row * OUTPUT_BLOCK,
                   (size_t)count * sizeof *gate);
        }
    }
}

typedef struct { /* what a stage multiplies: layers, and the rows of n inputs that all of them have */
    const Linear *layers[3];
    int count, n;
    const float *from, *norm; /* norm: weight of the root-mean-square norm before, or NULL */
} Operands;

static Operands find_operands(const Engine *e, const Stage *stage) {
    const Model *m = e->model;
    const Layer *layer = m->layers + stage->layer;
    const CrossLayer *cross = m->crosses + stage->layer;
    int inner = m->heads * m->head_size;
    switch (stage->kind) {
    case CROSS_Q: return (Operands){{&cross->q}, 1, m->width, e->x, cross->norm};
    case CROSS_O: return (Operands){{&cross->o}, 1, inner, e->attention_out, NULL};
    case CROSS_UP: return (Operands){{&cross->mlp.gate, &cross->mlp.up}, 2, m->width, e->x, cross->mlp_norm};
    case CROSS_DOWN: return (Operands){{&cross->mlp.down}, 1, cross->mlp.down.inputs, e->mlp_hidden, NULL};
    case QKV: return (Operands){{&layer->q, &layer->k, &layer->v}, 3, m->width, e->x, layer->norm};
    case O: return (Operands){{&layer->o}, 1, inner, e->attention_out, NULL};
    case UP: return (Operands){{&layer->mlp.gate, &layer->mlp.up}, 2, m->width, e->x, layer->mlp_norm};
    case DOWN: return (Operands){{&layer->mlp.down}, 1, layer->mlp.down.inputs, e->mlp_hidden, NULL};
    default: return (Operands){{&m->lm_heads[0], &m->lm_heads[1]}, m->table_count, m->width, e->x, m->norm};
    }
}

/* Runs units `from` to `to` of a stage. A unit is OUTPUTS_PER_UNIT outputs, or the attention of a head of a sequence to
 * one split, or of a row to its image. */
void STAGE_FUNCTION(Engine *e, ThreadScratch *t, int index, int from, int to) {
    const Model *m = e->model;
    const Stage *stage = e->stages + index;
    int inner = m->heads * m->head_size, all = inner + 2 * m->kv_heads * m->head_size;
    const Layer *layer = m->layers + stage->layer;
    const CrossLayer *cross = m->crosses + stage->layer;
    if (stage->kind == ATTEND) {
        for (int u = from; u < to; u++) {
            int sequence = u / (m->kv_heads * e->num_kv_splits), rest = u % (m->kv_heads * e->num_kv_splits);
            attend_sequence(e, t, layer, sequence, rest % m->kv_heads, rest / m->kv_heads);
        }
        return;
    }
    if (stage->kind == CROSS_ATTEND) {
        for (int u = from; u < to; u++) cross_attend_head(e, t, cross, stage->layer, u / m->heads, u % m->heads);
        return;
    }
    from *= OUTPUTS_PER_UNIT, to *= OUTPUTS_PER_UNIT;
    Operands operands = find_operands(e, stage);
    if (stage->is_low_rank) { /* the next stage has the same inputs */
        prepare_inputs(e, t, index + 1, operands.from, operands.n, operands.norm,
                       kind_mask(operands.layers, operands.count));
        multiply_first_factors(e, stage->terms, &t->inputs, from, to);
        return;
    }
    int most = num_outputs(m, *stage);
    to = to < most ? to : most;
    if (stage->kind == UP || stage->kind == CROSS_UP) /* both have these outputs */
        prefetch_weights(operands.layers, 1, from), prefetch_weights(operands.layers + 1, 1, from);
    else
        prefetch_weights(operands.layers, operands.count, from);
    prepare_inputs(e, t, index, operands.from, operands.n, operands.norm, kind_mask(operands.layers, operands.count));
    switch (stage->kind) {
    case CROSS_Q: multiply_concatenated(e, stage, operands.layers, 1, &t->inputs, from, to, e->qkv, inner); break;
    case QKV: multiply_concatenated(e, stage, operands.layers, 3, &t->inputs, from, to, e->qkv, all); break;
    case CROSS_O: add_to_residual(e, t, stage, &cross->o, from, to, cross->gate); break;
    case CROSS_UP: gate_up_activate(e, t, stage, &cross->mlp, from, to); break;
    case CROSS_DOWN: add_to_residual(e, t, stage, &cross->mlp.down, from, to, cross->mlp_gate); break;
    case O: add_to_residual(e, t, stage, &layer->o, from, to, NULL); break;
    case UP: gate_up_activate(e, t, stage, &layer->mlp, from, to); break;
    case DOWN: add_to_residual(e, t, stage, &layer->mlp.down, from, to, NULL); break;
    default: /* HEAD */
        multiply_concatenated(e, stage, operands.layers, operands.count, &t->inputs, from, to, e->step->logits, most);
    }
}

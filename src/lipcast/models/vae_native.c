/* Chains of causal convolutions on a CPU with AMX tiles, bfloat16 with float32 sums.
 *
 * A chain is what lies between two points where the whole picture is needed: norm, SiLU,
 * convolution, norm, SiLU, convolution, add, and so on. It is computed row by row: each
 * convolution keeps the few input rows that it needs, of all frames, in a ring of lines, and asks
 * the one before it for the next row. So activations stay in the second-level cache, and only the
 * input, the output and the two remembered frames of each convolution go through memory.
 *
 * Layouts: pictures [frame][row][column][channel]; a line [column][frame][channel], its channels
 * padded to 16, so that one tile row (32 values) holds the frames that one output frame sees.
 * Every thread makes a band of output rows, and the rows above and below it that it needs. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "vae_native_lines.h"
#include "vae_native_team.h"

enum { TILE_VALUES = 512, MAX_CHAIN = 16, MAX_KERNEL = 3, RESIDUAL_ROWS = 3 };

typedef struct {
    const bf16 *weight;   /* [shift][out tile][ky][kx][chunk] of tiles, see vae_native.py */
    const bf16 *shortcut; /* [out tile][chunk] of tiles: 1x1 on the residual level; or NULL */
    const float *bias;
    const float *gamma;   /* scaled norm weight, then SiLU; NULL: the input is used as it is */
    const bf16 *past;     /* [num_past][row][column][in_ch], after norm and SiLU; NULL: zeros */
    bf16 *new_past;       /* same shape: the newest frames, for the next chunk; or NULL */
    int32_t in_frames, num_past, in_height, in_width, in_ch;
    int32_t out_frames, out_height, out_width, out_ch;
    int32_t kernel_t, kernel, stride_t, stride, pad;
    int32_t up;       /* 1: every input pixel counts as 2 x 2 */
    int32_t residual; /* the level that is added to the result (0: the chain's input), or -1 */
} Conv;

typedef struct {
    const bf16 *input;
    void *output;
    int32_t input_frames, output_is_float, num_convs;
    Conv convs[MAX_CHAIN];
} Chain;

/* ---- the state of one band ---------------------------------------------------------------- */

typedef struct {
    int padded_ch;      /* in_ch rounded up to 16 */
    int chunks;         /* tiles of 32 values per kernel column and row */
    int next_row;       /* the next row of the convolution's input to prepare */
    size_t step, line;  /* values per pixel and per line */
    bf16 *lines;        /* [kernel] lines */
    size_t raw_row;     /* values per frame in `raw` */
    int raw_rows;       /* more than one where the result is added again, two convolutions later */
    bf16 *raw;          /* [raw_rows][out_frames] rows of the result; none in the last stage */
} Stage;

typedef struct {
    const Chain *chain;
    int first, last; /* output rows [first, last) */
    float *sums;     /* 4 tiles */
    bf16 *side;      /* a row of the residual level, for the shortcut */
    Stage stages[MAX_CHAIN];
} Band;

static size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

static int wide(const Conv *conv) { return conv->in_width << conv->up; }
static int high(const Conv *conv) { return conv->in_height << conv->up; }

static int is_added(const Chain *chain, int level) {
    for (int i = 0; i < chain->num_convs; i++)
        if (chain->convs[i].residual == level) return 1;
    return 0;
}

/* Lay out a band in `memory` and return its size; with memory NULL, only the size. */
static size_t lay_out(Band *band, const Chain *chain, char *memory) {
    size_t at = 4 * 256 * sizeof(float), side = 0;
    for (int i = 0; i < chain->num_convs; i++) {
        const Conv *conv = &chain->convs[i];
        Stage *stage = &band->stages[i];
        const int frames = conv->in_frames + conv->num_past;
        stage->padded_ch = round_up(conv->in_ch, TILE);
        stage->chunks = round_up(conv->kernel_t * stage->padded_ch, 32) / 32;
        stage->step = round_up((size_t)frames * stage->padded_ch, 32);
        stage->line = (conv->pad + wide(conv) + 2 + 2 * TILE * conv->stride) * stage->step;
        stage->raw_row = (size_t)conv->out_width * conv->out_ch;
        stage->lines = (bf16 *)(memory + at);
        at += round_up(conv->kernel * stage->line * sizeof(bf16), 64);
        stage->raw = (bf16 *)(memory + at);
        stage->raw_rows = i + 1 == chain->num_convs ? 0 : is_added(chain, i + 1) ? RESIDUAL_ROWS : 1;
        at += round_up(stage->raw_rows * conv->out_frames * stage->raw_row * sizeof(bf16), 64);
        const size_t row = (size_t)(wide(conv) + 5 * TILE) * stage->padded_ch;
        side = row > side ? row : side;
    }
    band->sums = (float *)memory;
    band->side = (bf16 *)(memory + at);
    return at + side * sizeof(bf16);
}

/* Row y of frame t of a level: level 0 is the chain's input, level i the result of conv i - 1.
 * After the last frame of a level comes the last one again. */
static bf16 *level_row(const Band *band, int level, int t, int y) {
    const Chain *chain = band->chain;
    const int frames = level ? chain->convs[level - 1].out_frames : chain->input_frames;
    if (t >= frames) t = frames - 1;
    if (level == 0) {
        const size_t row = (size_t)t * chain->convs[0].in_height + y;
        return (bf16 *)chain->input + row * chain->convs[0].in_width * chain->convs[0].in_ch;
    }
    const Stage *stage = &band->stages[level - 1];
    return stage->raw + ((size_t)(y % stage->raw_rows) * frames + t) * stage->raw_row;
}

static bf16 *line_of(const Conv *conv, const Stage *stage, int row) {
    return stage->lines + (row + conv->kernel) % conv->kernel * stage->line;
}

static void make_row(Band *band, int index, int y);

/* Bring row `row` of the input of conv `index` into its ring, all frames, past ones first. */
static void prepare_row(Band *band, int index, int row) {
    const Conv *conv = &band->chain->convs[index];
    const Stage *stage = &band->stages[index];
    const int ch = conv->in_ch, width = wide(conv), frames = conv->in_frames + conv->num_past;
    const size_t plane = (size_t)high(conv) * width * ch, at = (size_t)row * width * ch;
    bf16 *line = line_of(conv, stage, row) + conv->pad * stage->step;
    if (row < 0 || row >= high(conv)) {
        memset(line, 0, width * stage->step * sizeof(bf16));
        return;
    }
    if (index > 0) make_row(band, index - 1, row);
    for (int f = 0; f < frames; f++) {
        bf16 *to = line + f * stage->padded_ch;
        const int t = f - conv->num_past;
        if (t < 0 && conv->past)
            copy_pixels(conv->past + f * plane + at, ch, to, stage->step, width, ch, 0);
        else if (t < 0)
            for (int i = 0; i < width; i++) memset(to + i * stage->step, 0, ch * sizeof(bf16));
        else if (conv->gamma)
            activate_row(level_row(band, index, t, row), conv->gamma, to, width, ch, stage->step);
        else
            copy_pixels(level_row(band, index, t, row >> conv->up), ch, to, stage->step, width, ch,
                        conv->up);
    }
    const int mine = row >= band->first && row < band->last;
    for (int k = 0; conv->new_past && mine && k < conv->num_past; k++) {
        const bf16 *from = line + (frames - conv->num_past + k) * stage->padded_ch;
        copy_pixels(from, stage->step, conv->new_past + k * plane + at, ch, width, ch, 0);
    }
}

/* ---- the convolution ---------------------------------------------------------------------- */

static inline void clear_tiles(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void store_tiles(float *sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

/* 4 tiles: 64 pixels x 16 channels. Tile registers: 0-3 sums, 4-5 pixels, 6-7 weights. */
static inline void multiply_64x16(const bf16 *x, size_t tile_step, long pitch,
                                  const bf16 *weight, int chunks, int tiles) {
    for (int j = 0; j < chunks; j++, x += 32, weight += TILE_VALUES) {
        _tile_loadd(6, weight, 64);
        _tile_loadd(4, x, pitch);
        _tile_dpbf16ps(0, 4, 6);
        if (tiles < 2) continue;
        _tile_loadd(5, x + tile_step, pitch);
        _tile_dpbf16ps(1, 5, 6);
        if (tiles < 3) continue;
        _tile_loadd(4, x + 2 * tile_step, pitch);
        _tile_dpbf16ps(2, 4, 6);
        if (tiles < 4) continue;
        _tile_loadd(5, x + 3 * tile_step, pitch);
        _tile_dpbf16ps(3, 5, 6);
    }
}

/* 4 tiles: 32 pixels x 32 channels. */
static inline void multiply_32x32(const bf16 *x, size_t tile_step, long pitch,
                                  const bf16 *weight, size_t weight_step, int chunks) {
    for (int j = 0; j < chunks; j++, x += 32, weight += TILE_VALUES) {
        _tile_loadd(6, weight, 64);
        _tile_loadd(7, weight + weight_step, 64);
        _tile_loadd(4, x, pitch);
        _tile_loadd(5, x + tile_step, pitch);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

/* Four sums of 16 pixels x 16 channels, side by side in columns, in 2 columns x 2 channel tiles, or
 * in four frames. Four frames share most of their inputs: fewer loads per product. */
enum Shape { COLUMNS_4, COLUMNS_2_CHANNELS_2, FRAMES_4 };

/* Everything that the tiles of one row have in common. */
typedef struct {
    Band *band;
    const Conv *conv;
    const Stage *stage;
    const bf16 *lines[MAX_KERNEL];
    int index, y, out_tiles;
    size_t per_tile;   /* weights of one output channel tile */
    size_t tile_step;  /* values between two columns of tiles in a line */
    long pitch;        /* bytes between two output pixels in a line */
} Row;

/* Where four sums lie: first column, frame and channel tile. */
typedef struct {
    enum Shape shape;
    int x, t, n;
} Place;

static const bf16 *weights_of(const Row *row, int shift, int n) {
    return row->conv->weight + ((size_t)shift * row->out_tiles + n) * row->per_tile;
}

static void multiply_columns(const Row *row, const Place *at) {
    const Conv *conv = row->conv;
    const int frame = at->t * conv->stride_t * row->stage->padded_ch, odd = frame % 32 != 0;
    const size_t x = (size_t)at->x * conv->stride * row->stage->step + frame - (odd ? TILE : 0);
    const int chunks = row->stage->chunks, left = (conv->out_width - at->x + TILE - 1) / TILE;
    const bf16 *weight = weights_of(row, odd, at->n);
    for (int ky = 0; ky < conv->kernel; ky++)
        for (int kx = 0; kx < conv->kernel; kx++, weight += (size_t)TILE_VALUES * chunks) {
            const bf16 *from = row->lines[ky] + x + kx * row->stage->step;
            if (at->shape == COLUMNS_4)
                multiply_64x16(from, row->tile_step, row->pitch, weight, chunks, left);
            else
                multiply_32x32(from, row->tile_step, row->pitch, weight, row->per_tile, chunks);
        }
}

/* 16 channels: a tile row is two frames. `even` and `odd`: the weights at both shifts. */
static inline void multiply_frame_pairs(const bf16 *x, long pitch, const bf16 *even,
                                        const bf16 *odd) {
    _tile_loadd(4, x, pitch);
    _tile_loadd(5, even, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, odd, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(4, x + 32, pitch);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 6);
    _tile_loadd(7, even + TILE_VALUES, 64);
    _tile_dpbf16ps(0, 4, 7);
    _tile_loadd(5, odd + TILE_VALUES, 64);
    _tile_dpbf16ps(1, 4, 5);
    _tile_loadd(4, x + 64, pitch);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 4, 5);
}

/* 32 channels of six frames; `tap`: values between the weights of two frames. */
static inline void multiply_frames(const bf16 *x, size_t frame, long pitch, const bf16 *weight,
                                   size_t tap) {
    _tile_loadd(5, weight, 64);
    _tile_loadd(4, x, pitch);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, weight + tap, 64);
    _tile_loadd(4, x + frame, pitch);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weight + 2 * tap, 64);
    _tile_loadd(4, x + 2 * frame, pitch);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(1, 4, 6);
    _tile_dpbf16ps(0, 4, 7);
    _tile_loadd(4, x + 3 * frame, pitch);
    _tile_dpbf16ps(3, 4, 5);
    _tile_dpbf16ps(2, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(4, x + 4 * frame, pitch);
    _tile_dpbf16ps(3, 4, 6);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(4, x + 5 * frame, pitch);
    _tile_dpbf16ps(3, 4, 7);
}

static void multiply_four_frames(const Row *row, const Place *at) {
    const Conv *conv = row->conv;
    const Stage *stage = row->stage;
    const int ch = stage->padded_ch, per_frame = ch / 32;
    const size_t x = (size_t)at->x * stage->step + at->t * ch;
    const bf16 *weight = weights_of(row, 0, at->n), *odd = weights_of(row, ch % 32 != 0, at->n);
    for (int k = 0; k < conv->kernel * conv->kernel; k++) {
        const bf16 *from = row->lines[k / conv->kernel] + x + k % conv->kernel * stage->step;
        if (ch == TILE) multiply_frame_pairs(from, row->pitch, weight, odd);
        for (int c = 0; c < per_frame; c++)
            multiply_frames(from + 32 * c, ch, row->pitch, weight + TILE_VALUES * c,
                            (size_t)TILE_VALUES * per_frame);
        weight += (size_t)TILE_VALUES * stage->chunks;
        odd += (size_t)TILE_VALUES * stage->chunks;
    }
}

/* Add the 1x1 convolution of the residual level to the sums, from a copy with room behind. */
static void multiply_shortcut(const Row *row, const Place *at) {
    const Conv *conv = row->conv, *source = &row->band->chain->convs[conv->residual];
    const int ch = row->band->stages[conv->residual].padded_ch, chunks = round_up(ch, 32) / 32;
    const int frames = at->shape == FRAMES_4 ? 4 : 1, most = frames == 4 ? TILE : 4 * TILE;
    const int left = conv->out_width - at->x, width = left < most ? left : most;
    const size_t per_tile = (size_t)TILE_VALUES * chunks, tile_step = (size_t)TILE * ch;
    const bf16 *weight = conv->shortcut + at->n * per_tile;
    const long pitch = (long)(ch * sizeof(bf16));
    bf16 *side = row->band->side;
    for (int i = 0; i < frames; i++) {
        const bf16 *from = level_row(row->band, conv->residual, at->t + i, row->y);
        copy_pixels(from + (size_t)at->x * source->in_ch, source->in_ch, side + i * tile_step, ch,
                    width, source->in_ch, 0);
    }
    if (at->shape == COLUMNS_2_CHANNELS_2)
        multiply_32x32(side, tile_step, pitch, weight, per_tile, chunks);
    else
        multiply_64x16(side, tile_step, pitch, weight, chunks,
                       frames == 4 ? 4 : (width + TILE - 1) / TILE);
}

typedef struct {
    void *to;             /* the first pixel's first channel of this tile */
    const bf16 *residual; /* the same place in the residual level, or NULL */
    const float *bias;
    int pixels, channels, step, is_float;
} Finish;

static inline __attribute__((always_inline)) void finish_pixels(const Finish *f, const float *sums,
                                                                __mmask16 mask, int pixels) {
    const __m512 bias = _mm512_maskz_loadu_ps(mask, f->bias);
    for (int i = 0; i < pixels; i++) {
        __m512 v = _mm512_add_ps(_mm512_load_ps(sums + TILE * i), bias);
        if (f->residual) v = _mm512_add_ps(v, load(mask, f->residual + i * f->step));
        if (f->is_float)
            _mm512_mask_storeu_ps((float *)f->to + i * f->step, mask, v);
        else
            store(mask, (bf16 *)f->to + i * f->step, v);
    }
}

/* Sums + bias + residual to the result's type. */
static void finish_tile(const Finish *f, const float *sums) {
    if (f->channels >= TILE && f->pixels >= TILE)
        finish_pixels(f, sums, 0xffff, TILE);
    else
        finish_pixels(f, sums, lanes(f->channels), f->pixels < TILE ? f->pixels : TILE);
}

static void finish(const Row *row, const Place *at) {
    const Conv *conv = row->conv;
    const Chain *chain = row->band->chain;
    const int ch = conv->out_ch, is_last = row->index + 1 == chain->num_convs;
    const int is_float = is_last && chain->output_is_float;
    const size_t size = is_float ? sizeof(float) : sizeof(bf16);
    const int adds_level = conv->residual >= 0 && !conv->shortcut;
    for (int i = 0; i < 4; i++) {
        const int t = at->t + (at->shape == FRAMES_4 ? i : 0);
        const int n = at->n + (at->shape == COLUMNS_2_CHANNELS_2 ? i % 2 : 0);
        const int column = at->shape == COLUMNS_4 ? i : at->shape == FRAMES_4 ? 0 : i / 2;
        const int x = at->x + TILE * column;
        if (x >= conv->out_width) break;
        const size_t place = (size_t)x * ch + TILE * n;
        const size_t pixel = ((size_t)t * conv->out_height + row->y) * conv->out_width;
        char *to = is_last ? (char *)chain->output + pixel * ch * size
                           : (char *)level_row(row->band, row->index + 1, t, row->y);
        const bf16 *level = adds_level ? level_row(row->band, conv->residual, t, row->y) : NULL;
        const Finish f = {
            .to = to + place * size,
            .residual = level ? level + place : NULL,
            .bias = conv->bias + TILE * n,
            .pixels = conv->out_width - x,
            .channels = ch - TILE * n,
            .step = ch,
            .is_float = is_float,
        };
        finish_tile(&f, row->band->sums + 256 * i);
    }
}

static inline void make_tiles(const Row *row, Place at) {
    clear_tiles();
    if (at.shape == FRAMES_4)
        multiply_four_frames(row, &at);
    else
        multiply_columns(row, &at);
    if (row->conv->shortcut) multiply_shortcut(row, &at);
    store_tiles(row->band->sums);
    finish(row, &at);
}

/* Row y of the result of conv `index`, all frames. */
static void make_row(Band *band, int index, int y) {
    const Conv *conv = &band->chain->convs[index];
    Stage *stage = &band->stages[index];
    const int top = y * conv->stride - conv->pad;
    while (stage->next_row < top + conv->kernel) prepare_row(band, index, stage->next_row++);
    Row row = {.band = band, .conv = conv, .stage = stage, .index = index, .y = y};
    for (int ky = 0; ky < conv->kernel; ky++) row.lines[ky] = line_of(conv, stage, top + ky);
    row.out_tiles = round_up(conv->out_ch, TILE) / TILE;
    row.per_tile = (size_t)TILE_VALUES * stage->chunks * conv->kernel * conv->kernel;
    row.tile_step = (size_t)TILE * conv->stride * stage->step;
    row.pitch = (long)(conv->stride * stage->step * sizeof(bf16));
    const int fours = conv->kernel_t == 3 && conv->stride_t == 1 && conv->stride == 1 &&
                      (stage->padded_ch == TILE || stage->padded_ch % 32 == 0);
    const int num_fours = fours ? conv->out_frames / 4 * 4 : 0;
    for (int n = 0; n < row.out_tiles; n++)
        for (int x = 0; x < conv->out_width; x += TILE)
            for (int t = 0; t < num_fours; t += 4)
                make_tiles(&row, (Place){.shape = FRAMES_4, .x = x, .t = t, .n = n});
    for (int n = 0; n < row.out_tiles; n += 2) {
        const int pair = n + 1 < row.out_tiles;
        const enum Shape shape = pair ? COLUMNS_2_CHANNELS_2 : COLUMNS_4;
        for (int x = 0; x < conv->out_width; x += pair ? 2 * TILE : 4 * TILE)
            for (int t = num_fours; t < conv->out_frames; t++)
                make_tiles(&row, (Place){.shape = shape, .x = x, .t = t, .n = n});
    }
}

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

static void run_band(Team *team, int index, const void *argument) {
    const Chain *chain = argument;
    const int height = chain->convs[chain->num_convs - 1].out_height;
    Band band = {.chain = chain};
    band.first = height * index / team->size;
    band.last = height * (index + 1) / team->size;
    if (band.first == band.last) return;
    const size_t size = lay_out(&band, chain, team->scratch[index].memory);
    memset(team->scratch[index].memory, 0, size);
    int row = band.first;
    for (int i = chain->num_convs - 1; i >= 0; i--) {
        row = (row > 0 ? row : 0) * chain->convs[i].stride - chain->convs[i].pad;
        band.stages[i].next_row = row;
    }
    TileConfig before, tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) tiles.rows[i] = TILE, tiles.row_bytes[i] = 64;
    _tile_storeconfig(&before); /* another library may rely on the configuration it left here */
    _tile_loadconfig(&tiles);
    for (int y = band.first; y < band.last; y++) make_row(&band, chain->num_convs - 1, y);
    _tile_loadconfig(&before);
}

/* 0, or -1 where there is not enough memory. One chain at a time per team. */
int lipcast_run_chain(Team *team, const Chain *chain) {
    Band band = {.chain = chain};
    if (reserve(team, lay_out(&band, chain, NULL))) return -1;
    run_together(team, run_band, chain);
    return 0;
}

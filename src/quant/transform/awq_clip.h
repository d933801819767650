/* The second half of AWQ (arXiv:2306.00978): where a group's range is narrower than its weights,
 * the largest of them lose and all others gain. The weights themselves are clipped, so that a
 * method that takes scales from extremes finds the narrower range. One that searches for scales
 * needs none of this. */
#ifndef NB_QUANT_TRANSFORM_AWQ_CLIP_H
#define NB_QUANT_TRANSFORM_AWQ_CLIP_H

#include "quant/transform/transform.h"

/* Clips the weights of linear `id`, whose inputs have second moments h: in place where they are
 * held, else in what is kept of them (changes.h). Each span of the format's grid in each row gets
 * the ratio of 1, 0.95 ... 0.5 that gives e h e^T its least, e the error of its rounded weights
 * against those before clipping and h the span's own block of it (its diagonal for spans of more
 * than NB_CLIP_BLOCK columns); 1 where none is better. *clipped is the share of spans with another
 * ratio. Formats without spans of their own are left alone. */
#define NB_CLIP_BLOCK 128
nb_status nb_awq_clip(const nb_transform_job *job, nb_linear_id id, const nb_sym *h,
                      double *clipped, nb_err *err);

#endif

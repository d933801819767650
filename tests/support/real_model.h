/* Where the real model lies, SmolLM2-135M-Instruct as published (Q4_1). Tests of it name
 * NIBBLE_MODEL in their source, which gives them the label `model`. */
#ifndef NB_TESTS_REAL_MODEL_H
#define NB_TESTS_REAL_MODEL_H

/* NIBBLE_MODEL, or where `nibble pull` leaves it. When there is none, says SKIP and why, and ends
 * the program with 77. */
const char *real_model_path(void);
/* A file of the evaluation data; NULL, after saying so, when it is not there. Valid until the next
 * call. */
const char *real_data_path(const char *name);

#endif

/* Time as durations need it: seconds of the monotonic clock, which no change of date disturbs. */
#ifndef NB_BASE_CLOCK_H
#define NB_BASE_CLOCK_H

double nb_clock(void);

#endif

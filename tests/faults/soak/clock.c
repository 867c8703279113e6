/* The clock of one process, set ahead or back while it runs: what LD_PRELOAD puts between it and
 * the kernel. The file that SOAK_CLOCK names holds 8 bytes, nanoseconds to add to the time of day;
 * it stays mapped, so that a write to it is a clock that was set. The monotonic clock goes on as it
 * is, and who waits until a time of day waits until that time by the clock that was set. (Debian's
 * libfaketime 0.9.10 breaks clock_nanosleep, and knows nothing of futexes that wait for a time of
 * day, which gRPC's threads use.)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const volatile long long none = 0, *offset = &none;

__attribute__((constructor)) static void open_clock(void) {
  const char *path = getenv("SOAK_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *there = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  if (there != MAP_FAILED) offset = there;
  close(file);
}

static struct timespec later(struct timespec time, long long by) {
  long long all = time.tv_sec * SECOND + time.tv_nsec + by;
  struct timespec sum = {all / SECOND, all % SECOND};
  if (sum.tv_nsec < 0) sum.tv_sec--, sum.tv_nsec += SECOND;
  return sum;
}

/* A moment as the kernel knows it. What is less than 20 years is no time of day: it is of the
 * monotonic clock. */
static struct timespec real(const struct timespec *time) {
  if (time->tv_sec < 20LL * 365 * 86400) return *time;
  struct timespec sum = later(*time, -*offset);
  if (sum.tv_sec < 0) sum.tv_sec = sum.tv_nsec = 0;
  return sum;
}

#define NEXT(name) \
  static __typeof__(&name) next; \
  if (!next) next = dlsym(RTLD_NEXT, #name)

int clock_gettime(clockid_t clock, struct timespec *now) {
  NEXT(clock_gettime);
  int result = next(clock, now);
  if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    *now = later(*now, *offset);
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec time;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &time);
  now->tv_sec = time.tv_sec, now->tv_usec = time.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  return now ? *now = time.tv_sec : time.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                           const struct timespec *until) {
  NEXT(pthread_cond_timedwait);
  struct timespec then = real(until);
  return next(cond, mutex, &then);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
  NEXT(sem_timedwait);
  struct timespec then = real(until);
  return next(semaphore, &then);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until) {
  NEXT(pthread_mutex_timedlock);
  struct timespec then = real(until);
  return next(mutex, &then);
}

long syscall(long number, ...) {
  NEXT(syscall);
  va_list rest;
  long a[6];
  va_start(rest, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
  va_end(rest);
  struct timespec then;
  if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
    then = real((const struct timespec *)a[3]);
    a[3] = (long)&then;
  }
  return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* A team of threads that run one job on all of its members at a time; the caller is member 0.
 *
 * Between jobs a thread spins for some microseconds, then sleeps. Each member has a piece of
 * memory that grows to the largest job and stays. */
#pragma once
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPIN_MEMBER = 4000, SPIN_CALLER = 20000 };
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

typedef struct {
    void *memory;
    size_t size;
} Scratch;

typedef struct Team {
    int size, stop;
    pthread_t *threads;
    Scratch *scratch;
    void (*job)(struct Team *, int index, const void *argument);
    const void *argument;
    atomic_int generation, pending;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} Team;

typedef struct {
    Team *team;
    int index;
} Member;

static void wait_for_work(Team *team, int seen) {
    for (int spins = 0; spins < SPIN_MEMBER; spins++, _mm_pause())
        if (atomic_load(&team->generation) != seen) return;
    pthread_mutex_lock(&team->mutex);
    while (atomic_load(&team->generation) == seen) pthread_cond_wait(&team->wake, &team->mutex);
    pthread_mutex_unlock(&team->mutex);
}

static void *work(void *argument) {
    Member member = *(Member *)argument;
    free(argument);
    Team *team = member.team;
    for (int seen = 0;;) {
        wait_for_work(team, seen);
        seen = atomic_load(&team->generation);
        if (team->stop) return NULL;
        team->job(team, member.index, team->argument);
        atomic_fetch_sub(&team->pending, 1);
    }
}

static void start_work(Team *team) {
    pthread_mutex_lock(&team->mutex);
    atomic_store(&team->pending, team->size - 1);
    atomic_fetch_add(&team->generation, 1);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
}

void lipcast_team_free(Team *team) {
    team->stop = 1;
    start_work(team);
    for (int i = 1; i < team->size; i++) pthread_join(team->threads[i], NULL);
    for (int i = 0; i < team->size; i++) free(team->scratch[i].memory);
    pthread_mutex_destroy(&team->mutex);
    pthread_cond_destroy(&team->wake);
    free(team->threads);
    free(team->scratch);
    free(team);
}

/* NULL where the system does not let this process use tiles or start threads. */
Team *lipcast_team_new(int size) {
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) return NULL;
    Team *team = calloc(1, sizeof *team);
    team->threads = calloc(size, sizeof *team->threads);
    team->scratch = calloc(size, sizeof *team->scratch);
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->wake, NULL);
    for (team->size = 1; team->size < size; team->size++) {
        Member *member = malloc(sizeof *member);
        *member = (Member){team, team->size};
        if (pthread_create(&team->threads[team->size], NULL, work, member)) {
            free(member);
            lipcast_team_free(team);
            return NULL;
        }
    }
    return team;
}

/* Give every member `size` bytes; 0, or -1 where there is not enough memory. */
static int reserve(Team *team, size_t size) {
    size = (size + 4095) / 4096 * 4096;
    for (int i = 0; i < team->size; i++) {
        Scratch *scratch = &team->scratch[i];
        if (scratch->size >= size) continue;
        free(scratch->memory);
        scratch->memory = aligned_alloc(4096, size);
        scratch->size = scratch->memory ? size : 0;
        if (!scratch->memory) return -1;
    }
    return 0;
}

/* Run `job` on every member and return when all are done. */
static void run_together(Team *team, void (*job)(Team *, int, const void *), const void *argument) {
    team->job = job;
    team->argument = argument;
    if (team->size > 1) start_work(team);
    job(team, 0, argument);
    for (int spins = 0; atomic_load(&team->pending) > 0; spins++)
        if (spins < SPIN_CALLER) _mm_pause();
        else sched_yield();
}

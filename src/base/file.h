/* Files: positioned reads from regular files only, and outputs that appear whole or not at all.
 *
 * No mapping is kept: a file that shrinks while it is read gives an error, never a signal. Reads
 * and writes retry EINTR and short transfers. */
#ifndef NB_BASE_FILE_H
#define NB_BASE_FILE_H

#include "base/bytes.h"
#include "base/sha256.h"

#include <sys/types.h>

/* An open regular file, and what it looked like when it was opened. */
typedef struct {
    int fd; /* < 0: not open, which is what {.fd = -1} means */
    int64_t size;
    int64_t mtime_ns;
    char *path; /* as given, owned */
} nb_file;

#define NB_FILE_CLOSED ((nb_file){.fd = -1})

/* Opens `path` for reading. A directory, FIFO, device or socket is refused at once (NB_DATA, no
 * blocking open); a missing file is NB_DATA too, because the user named it ("no such file"). */
nb_status nb_file_open(nb_file *file, const char *path, nb_err *err);
void nb_file_close(nb_file *file);

/* Reads exactly n bytes at `offset`. Past the size seen at open: NB_DATA. Shorter now: NB_IO. */
nb_status nb_file_read(const nb_file *file, void *out, size_t n, int64_t offset, nb_err *err);

/* SHA-256 of the bytes from `offset` to the end. */
nb_status nb_file_sha256(const nb_file *file, int64_t offset, uint8_t digest[NB_SHA256_BYTES],
                         nb_err *err);

/* NB_DATA "changed while reading" when size or time differ from those at open. */
nb_status nb_file_check_unchanged(const nb_file *file, nb_err *err);

/* Reads a whole file of at most `limit` bytes into an empty buffer, zero-terminated (the zero is
 * not counted in len). "-" is standard input. */
nb_status nb_file_slurp(nb_buf *out, const char *path, size_t limit, nb_err *err);

/* An output file: bytes go to a locked temporary beside the target. */
typedef struct {
    int fd;
    char *path;      /* the final name */
    char *temporary; /* ".NAME.nibble-tmp" in the same folder */
    bool replaces;   /* a file under the final name may be replaced */
} nb_outfile;

#define NB_OUTFILE_CLOSED ((nb_outfile){.fd = -1})

/* Refuses an existing target unless `force` (NB_USAGE), a directory, device or FIFO always, and a
 * temporary that another process holds (NB_IO, "locked"). A leftover temporary of a killed process
 * is reused. */
nb_status nb_outfile_open(nb_outfile *out, const char *path, bool force, nb_err *err);
nb_status nb_outfile_write(nb_outfile *out, const void *bytes, size_t n, nb_err *err);
/* Syncs, renames to the final name, syncs the folder, and closes; on failure it aborts. When only
 * the last sync fails (NB_IO), the new file stands whole under the final name. */
nb_status nb_outfile_commit(nb_outfile *out, nb_err *err);
/* Removes the temporary; fine on a closed or committed one. */
void nb_outfile_abort(nb_outfile *out);
/* Other bytes in the middle of a file that stands, on the disk when this returns. */
nb_status nb_file_amend(const char *path, int64_t offset, const void *bytes, size_t n, nb_err *err);

/* An output folder: a locked temporary folder beside the target, renamed at the end. */
typedef struct {
    int fd; /* of the temporary folder, which holds the lock */
    char *path;
    char *temporary; /* write files here */
    bool replaces;   /* a folder stood under the final name when this was opened */
} nb_outdir;

#define NB_OUTDIR_CLOSED ((nb_outdir){.fd = -1})

/* As nb_outfile_open. With `force`, an existing folder is replaced only when it holds a
 * config.json or nothing at all, and no folders: nibble deletes model folders, never somebody's
 * home. A link to a folder is not replaced. */
nb_status nb_outdir_open(nb_outdir *out, const char *path, bool force, nb_err *err);
nb_status nb_outdir_commit(nb_outdir *out, nb_err *err);
void nb_outdir_abort(nb_outdir *out);

/* True when both paths exist and name the same file or folder. */
bool nb_path_same(const char *a, const char *b);
bool nb_path_is_dir(const char *path);
bool nb_path_exists(const char *path);

/* Tests only: the n-th read, write, sync or rename from now on fails with `errnum` (0: none). */
void nb_file_fail_at(int64_t n, int errnum);

#endif

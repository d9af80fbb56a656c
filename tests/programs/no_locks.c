/* Makes every flock fail with the errno in FLOCK_ERRNO, as on a file system without locks.
 *
 *     cc -shared -fPIC -o no_locks.so no_locks.c
 *     FLOCK_ERRNO=37 LD_PRELOAD=./no_locks.so python ...
 *
 * NFS, Lustre without `-o flock` and BeeGFS answer 37 (ENOLCK), 95 (EOPNOTSUPP) and 524 (ENOTSUPP of the kernel).
 */

#include <errno.h>
#include <stdlib.h>

int flock(int descriptor, int operation)
{
    (void)descriptor;
    (void)operation;
    const char *number = getenv("FLOCK_ERRNO");
    errno = number ? atoi(number) : ENOLCK;
    return -1;
}

/* Prints the numbers of quotactl_fd and the layout of its structure, as the kernel's headers define them. */
#include <linux/quota.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/syscall.h>

#define COMMAND(kind) (unsigned)(Q_GETQUOTA << SUBCMDSHIFT | (kind))

int main(void) {
    printf("%d %u %u %d ", SYS_quotactl_fd, COMMAND(USRQUOTA), COMMAND(GRPQUOTA), QIF_DQBLKSIZE);
    printf("%zu %zu %zu %zu %zu\n", offsetof(struct if_dqblk, dqb_bhardlimit), offsetof(struct if_dqblk, dqb_bsoftlimit),
           offsetof(struct if_dqblk, dqb_curspace), offsetof(struct if_dqblk, dqb_valid), sizeof(struct if_dqblk));
}

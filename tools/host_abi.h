/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the host asks of its kernel: the structs of KVM, seccomp, Landlock and capabilities (x86-64), and
 * the C library functions that Python does not offer, or not without copying. Read by cffi alone; a unit
 * test holds sizes and offsets against the kernel's own headers.
 */
struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t rip, rflags;
};

struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable, padding;
};

struct kvm_dtable {
    uint64_t base;
    uint16_t limit;
    uint16_t padding[3];
};

struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    uint64_t interrupt_bitmap[4];
};

struct kvm_userspace_memory_region {
    uint32_t slot;
    uint32_t flags;
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
};

struct kvm_cpuid_entry2 {
    uint32_t function, index, flags, eax, ebx, ecx, edx;
    uint32_t padding[3];
};

struct kvm_cpuid2 {
    uint32_t nent;
    uint32_t padding;
    struct kvm_cpuid_entry2 entries[8];
};

struct kvm_signal_mask {
    uint32_t len;
    uint8_t sigset[8];
};

/* The start of struct kvm_run, with the io member of its union and the registers of its other one. */
struct kvm_run {
    uint8_t request_interrupt_window;
    uint8_t immediate_exit;
    uint8_t padding1[6];
    uint32_t exit_reason;
    uint8_t ready_for_interrupt_injection;
    uint8_t if_flag;
    uint16_t flags;
    uint64_t cr8;
    uint64_t apic_base;
    struct {
        uint8_t direction;
        uint8_t size;
        uint16_t port;
        uint32_t count;
        uint64_t data_offset;
    } io;
    uint8_t rest_of_union[240];
    uint64_t kvm_valid_regs;
    uint64_t kvm_dirty_regs;
    struct kvm_regs regs;
};

struct sock_filter {
    uint16_t code;
    uint8_t jt, jf;
    uint32_t k;
};

struct sock_fprog {
    uint16_t len;
    struct sock_filter *filter;
};

struct landlock_ruleset_attr {
    uint64_t handled_access_fs;
    uint64_t handled_access_net;
    uint64_t scoped;
};

struct capability_header {
    uint32_t version;
    int pid;
};

struct capability_data {
    uint32_t effective, permitted, inheritable;
};

struct interval_timer {
    long interval_seconds, interval_microseconds;
    long value_seconds, value_microseconds;
};

int ioctl(int fd, unsigned long request, ...);
void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset);
int munmap(void *address, size_t length);
int madvise(void *address, size_t length, int advice);
ssize_t pread(int fd, void *buffer, size_t count, long offset);
ssize_t pwrite(int fd, const void *buffer, size_t count, long offset);
ssize_t write(int fd, const void *buffer, size_t count);
int fdatasync(int fd);
int sync_file_range(int fd, long offset, long length, unsigned int flags);
int posix_fadvise(int fd, long offset, long length, int advice);
int ftruncate(int fd, long length);
int fallocate(int fd, int mode, long offset, long length);
ssize_t copy_file_range(int in, int64_t *in_offset, int out, int64_t *out_offset, size_t length, unsigned int flags);
int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
int setitimer(int which, struct interval_timer *value, struct interval_timer *old);
int pthread_sigmask(int how, const uint64_t *set, uint64_t *old);
int setgroups(size_t size, void *list);
int setresgid(unsigned int real, unsigned int effective, unsigned int saved);
int setresuid(unsigned int real, unsigned int effective, unsigned int saved);
long syscall(long number, ...);

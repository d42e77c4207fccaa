/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Guests that were taken over: each mode tries one thing. The call names the mode and its arguments.
 */
#include "start/guest.h"

enum mode {
    /* Endless. */
    MODE_SPIN = 1,
    MODE_STORM,
    MODE_FILL_DISK,
    MODE_TOUCH_ALL_MEMORY,

    /* Memory: what is not mapped, not writable, not executable. */
    MODE_WRITE_CODE,
    MODE_RUN_DATA,
    MODE_RUN_STACK,
    MODE_TOUCH_ADDRESS, /* arguments[0]: the address */
    MODE_WRITE_ADDRESS,
    MODE_OVERRUN_STACK,

    /* Instructions. */
    MODE_OTHER_PORT,
    MODE_PORT_BEYOND_BITMAP,
    MODE_WIDE_DOORBELL,
    MODE_STRING_DOORBELL,
    MODE_READ_DOORBELL,
    MODE_READ_CR3,
    MODE_WRITE_CR0,
    MODE_SYSCALL,
    MODE_SYSENTER,
    MODE_INT80,
    MODE_WRMSR,
    MODE_RDMSR,
    MODE_HLT,
    MODE_CLI,
    MODE_LIDT,
    MODE_LGDT,
    MODE_LTR,
    MODE_INVLPG,
    MODE_FAR_JUMP,
    MODE_INTERRUPT_RETURN,
    MODE_DIVIDE,
    MODE_UNDEFINED,
    MODE_BREAKPOINT,
    MODE_SINGLE_STEP,
    MODE_NON_CANONICAL,

    /* Instructions that a processor may allow in user mode. */
    MODE_CPUID,
    MODE_VMMCALL,
    MODE_VMCALL,
    MODE_RDTSC,
    MODE_SIDT,
    MODE_XGETBV,
    MODE_WRFSBASE,
    MODE_INTERRUPT_FLAG,

    /* The doorbell. */
    MODE_BATCH,   /* arguments[0]: count, whatever the requests are */
    MODE_REQUEST, /* arguments: operation, disk, offset, length, memory, source disk, source offset */
    MODE_FINISH_FIRST,

    /* More of what is allowed than anybody needs. */
    MODE_FULL_BATCHES,   /* arguments: operation, disk, length, step of the offset, offsets below, batches */
    MODE_CHANGE_AND_STAY /* arguments: as of REQUEST; then it never ends */
};

struct hostile_call {
    u64 mode;
    u64 arguments[8];
};

static u64 result;
static u8 survived[8] = {'s', 'u', 'r', 'v', 'i', 'v', 'e', 'd'};

static void ring(u32 count) {
    doorbell_memory()->count = count;
    doorbell_ring();
}

static int64_t request(const u64 *arguments) {
    struct doorbell_request *first = &doorbell_memory()->requests[0];
    memset(first, 0, sizeof(*first));
    first->operation = (u32)arguments[0];
    first->disk = (u32)arguments[1];
    first->offset = arguments[2];
    first->length = arguments[3];
    first->memory = arguments[4];
    first->source_disk = (u32)arguments[5];
    first->source_offset = arguments[6];
    ring(1);
    return first->status;
}

static void fill_disk(u64 step) {
    for (u64 offset = 0;; offset += step) {
        const u64 arguments[] = {DOORBELL_WRITE, 0, offset, step, HEAP_ADDRESS, 0, 0};
        request(arguments);
    }
}

static void endless(const struct hostile_call *call) {
    switch (call->mode) {
    case MODE_SPIN:
        for (;;) {
            __asm__ volatile("pause");
        }
    case MODE_STORM: {
        const u64 arguments[] = {DOORBELL_PROGRESS, 0, 1, 2, 0, 0, 0};
        for (;;) {
            request(arguments);
        }
    }
    case MODE_FILL_DISK:
        fill_disk(call->arguments[0]);
        break;
    case MODE_TOUCH_ALL_MEMORY:
        for (u64 address = HEAP_ADDRESS; address < MEMORY_SIZE; address += 4096) {
            *(volatile u8 *)address = 1;
        }
        break;
    default:
        break;
    }
}

/* The file system has work with each of them, and the guest none. */
static void full_batches(const u64 *arguments) {
    struct doorbell_request *requests = doorbell_memory()->requests;
    u64 number = 0;
    for (u64 batch = 0; batch < arguments[5]; batch++) {
        for (u32 i = 0; i < DOORBELL_BATCH; i++, number++) {
            requests[i] = (struct doorbell_request){
                .operation = (u32)arguments[0],
                .disk = (u32)arguments[1],
                .offset = number * arguments[3] % arguments[4],
                .length = arguments[2],
                .memory = HEAP_ADDRESS,
            };
        }
        ring(DOORBELL_BATCH);
    }
}

static u64 overrun_stack(u64 pages) {
    volatile u8 page[4096];
    page[0] = (u8)pages;
    return pages == 0 ? 0 : overrun_stack(pages - 1) + page[0];
}

static void run(u64 address) {
    *(volatile u8 *)address = 0xc3;
    ((void (*)(void))address)();
}

static void memory(const struct hostile_call *call) {
    u8 on_stack[16];
    switch (call->mode) {
    case MODE_WRITE_CODE:
        *(volatile u8 *)TEXT_ADDRESS = 0x90;
        break;
    case MODE_RUN_DATA:
        run(HEAP_ADDRESS);
        break;
    case MODE_RUN_STACK:
        run((u64)on_stack);
        break;
    case MODE_TOUCH_ADDRESS:
        result = *(volatile u8 *)call->arguments[0];
        break;
    case MODE_WRITE_ADDRESS:
        *(volatile u8 *)call->arguments[0] = 1;
        break;
    case MODE_OVERRUN_STACK:
        result = overrun_stack(1000);
        break;
    default:
        break;
    }
}

static void ports(u64 mode) {
    u64 count = 4096;
    u64 from = HEAP_ADDRESS;
    switch (mode) {
    case MODE_OTHER_PORT:
        __asm__ volatile("outb %%al, $0x80" : : "a"(0));
        break;
    case MODE_PORT_BEYOND_BITMAP:
        __asm__ volatile("outb %%al, %%dx" : : "a"(0), "d"(0xcf8));
        break;
    case MODE_WIDE_DOORBELL:
        __asm__ volatile("outw %%ax, $0x10" : : "a"(0));
        break;
    case MODE_STRING_DOORBELL:
        __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(DOORBELL_PORT) : "memory");
        break;
    case MODE_READ_DOORBELL:
        __asm__ volatile("inb $0x10, %%al" : "=a"(result));
        break;
    default:
        break;
    }
}

static void privileged(u64 mode) {
    static u8 table[16];
    switch (mode) {
    case MODE_READ_CR3:
        __asm__ volatile("mov %%cr3, %0" : "=r"(result));
        break;
    case MODE_WRITE_CR0:
        __asm__ volatile("mov %0, %%cr0" : : "r"(0ul));
        break;
    case MODE_SYSCALL:
        __asm__ volatile("syscall" : : : "rcx", "r11", "memory");
        break;
    case MODE_SYSENTER:
        __asm__ volatile("sysenter" : : : "memory");
        break;
    case MODE_INT80:
        __asm__ volatile("int $0x80" : : : "memory");
        break;
    case MODE_WRMSR:
        __asm__ volatile("wrmsr" : : "c"(0xc0000080), "a"(0), "d"(0));
        break;
    case MODE_RDMSR:
        __asm__ volatile("rdmsr" : : "c"(0xc0000080) : "rax", "rdx");
        break;
    case MODE_HLT:
        __asm__ volatile("hlt");
        break;
    case MODE_CLI:
        __asm__ volatile("cli");
        break;
    case MODE_LIDT:
        __asm__ volatile("lidt %0" : : "m"(table));
        break;
    case MODE_LGDT:
        __asm__ volatile("lgdt %0" : : "m"(table));
        break;
    case MODE_LTR:
        __asm__ volatile("ltr %w0" : : "r"(0x28));
        break;
    case MODE_INVLPG:
        __asm__ volatile("invlpg (%0)" : : "r"(HEAP_ADDRESS));
        break;
    default:
        break;
    }
}

static void faults(u64 mode) {
    static const u64 ring_zero[] = {TEXT_ADDRESS, 0x10};
    switch (mode) {
    case MODE_FAR_JUMP:
        __asm__ volatile("rex.w ljmp *%0" : : "m"(ring_zero));
        break;
    case MODE_INTERRUPT_RETURN:
        __asm__ volatile("push $0x18; push %0; push $2; push $0x10; push %1; iretq"
                         :
                         : "r"((u64)STACK_TOP - 64), "r"((u64)TEXT_ADDRESS)
                         : "memory");
        break;
    case MODE_DIVIDE:
        __asm__ volatile("divl %0" : : "r"(0), "a"(1), "d"(0) : "cc");
        break;
    case MODE_UNDEFINED:
        __asm__ volatile("ud2");
        break;
    case MODE_BREAKPOINT:
        __asm__ volatile("int3");
        break;
    case MODE_SINGLE_STEP:
        __asm__ volatile("push $0x102; popfq; nop; nop" : : : "memory", "cc");
        break;
    case MODE_NON_CANONICAL:
        result = *(volatile u8 *)0x800000000000ul;
        break;
    default:
        break;
    }
}

static void tolerated(u64 mode) {
    u64 a = 0;
    u64 b = 0;
    static u8 table[16];
    switch (mode) {
    case MODE_CPUID:
        __asm__ volatile("cpuid" : "+a"(a), "=b"(result) : : "rcx", "rdx");
        break;
    case MODE_VMMCALL:
        __asm__ volatile("vmmcall" : "=a"(result) : "a"(1) : "memory");
        break;
    case MODE_VMCALL:
        __asm__ volatile("vmcall" : "=a"(result) : "a"(1) : "memory");
        break;
    case MODE_RDTSC:
        __asm__ volatile("rdtsc" : "=a"(a), "=d"(b));
        break;
    case MODE_SIDT:
        __asm__ volatile("sidt %0" : "=m"(table));
        memcpy(&result, table + 2, sizeof(result));
        break;
    case MODE_XGETBV:
        __asm__ volatile("xgetbv" : "=a"(a), "=d"(b) : "c"(0));
        break;
    case MODE_WRFSBASE:
        __asm__ volatile("wrfsbase %0" : : "r"(HEAP_ADDRESS + 0ul));
        break;
    case MODE_INTERRUPT_FLAG:
        __asm__ volatile("push $0x3202; popfq; pushfq; pop %0" : "=r"(result) : : "memory", "cc");
        break;
    default:
        break;
    }
}

static void doorbell(const struct hostile_call *call) {
    struct doorbell_request *requests = doorbell_memory()->requests;
    switch (call->mode) {
    case MODE_BATCH:
        ring((u32)call->arguments[0]);
        break;
    case MODE_REQUEST:
        result = (u64)request(call->arguments);
        break;
    case MODE_FINISH_FIRST:
        memset(requests, 0, 2 * sizeof(*requests));
        requests[0].operation = DOORBELL_FINISH;
        requests[1].operation = DOORBELL_PROGRESS;
        ring(2);
        break;
    case MODE_FULL_BATCHES:
        full_batches(call->arguments);
        break;
    case MODE_CHANGE_AND_STAY:
        request(call->arguments);
        for (;;) {
            __asm__ volatile("pause");
        }
    default:
        break;
    }
}

/* Whoever comes to the end was let through: the result says so. */
_Noreturn void guest_main(u64 memory_size) {
    const struct hostile_call *call = call_memory();
    (void)memory_size;
    endless(call);
    memory(call);
    ports(call->mode);
    privileged(call->mode);
    faults(call->mode);
    tolerated(call->mode);
    doorbell(call);
    memcpy(result_memory(), &result, sizeof(result));
    finish(survived, sizeof(survived));
}

# Everything that runs at CPL 0: entry, interrupt stubs, privileged services. Some hosts interpret CPL 0 slowly and
# without the rarer instructions, so it is kept small and plain; all work is Rust at CPL 3.
#
# Each processor has a block of one page, the same at offset (kernel/cpu.rs mirrors it):
#   0x000 pending events, 32 bit      0x008 top of the CPL 3 stack   0x010 CPL 3 entry point   0x018 its argument
#   0x040 TSS with I/O bitmap         0x100 GDT (7 entries)          0x138 GDT pointer
#   ...   CPL 0 stack, from 0x1000 down

.set PENDING, 0x000
.set USER_STACK, 0x008
.set USER_ENTRY, 0x010
.set USER_ARGUMENT, 0x018
.set TSS, 0x040
.set GDT, 0x100
.set GDT_POINTER, 0x138

.set KERNEL_CODE, 0x08
.set USER_DATA, 0x1b
.set USER_CODE, 0x23
.set TASK_STATE, 0x28

.set PENDING_DEVICE, 1
.set PENDING_TIMER, 2
.set PENDING_WAKE, 4

.section .entry, "ax"
# Linux 64-bit boot protocol: long mode, low memory mapped one to one, interrupts off, rsi = boot parameters.
.globl _start
_start:
    cli
    cld
    lea rbx, [boot_cpu]
    mov [rbx + USER_ARGUMENT], rsi
    # The one value the linker cannot compute: an address cut into the pieces of a descriptor.
    lea rax, [rbx + TSS]
    mov [rbx + GDT + TASK_STATE + 2], ax
    shr rax, 16
    mov [rbx + GDT + TASK_STATE + 4], al
    mov [rbx + GDT + TASK_STATE + 7], ah
    lea rax, [page_map]
    mov cr3, rax

# A processor in long mode with our page tables, its block in rbx: goes to CPL 3 and never comes back as such.
enter_user:
    mov eax, 0x620                          # PAE, and SSE: OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov eax, 0x80010033                     # paging, write protection, native FPU errors, protected mode
    mov cr0, rax
    lgdt [rbx + GDT_POINTER]
    lidt [idt_pointer]
    mov eax, TASK_STATE
    ltr ax
    mov eax, USER_DATA
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rdi, [rbx + USER_ARGUMENT]
    mov rsi, rbx
    mov rsp, rbx
    add rsp, 0x1000
    push USER_DATA
    push [rbx + USER_STACK]
    push 0x2                                # interrupts off until the IDT is filled
    push USER_CODE
    push [rbx + USER_ENTRY]
    iretq

.globl ap_entry
ap_entry:
    mov rbx, [ap_block]
    jmp enter_user

# Interrupts: note the event in the processor's block, acknowledge, go on. Interrupts stay off meanwhile.
.macro interrupt name, event
.globl \name
\name:
    push rax
    mov rax, rsp
    and rax, -0x1000
    or dword ptr [rax + PENDING], \event
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq
.endm
interrupt device_interrupt, PENDING_DEVICE
interrupt timer_interrupt, PENDING_TIMER
interrupt wake_interrupt, PENDING_WAKE

.globl spurious_interrupt
spurious_interrupt:
    iretq

# Exceptions: a uniform frame (vector, error code), then the report, which is Rust at CPL 3 on a stack of its own.
.set vector, 0
.globl exception_stubs
.balign 16
exception_stubs:
.rept 32
    .balign 16
    .if vector == 13
    jmp general_protection
    .else
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else                                   # the others come without an error code
    push 0
    .endif
    push vector
    jmp exception
    .endif
    .set vector, vector + 1
.endr

exception:
    mov rdi, [rsp]                          # vector
    mov rsi, [rsp + 8]                      # error code
    mov rdx, [rsp + 16]                     # rip
    mov rcx, cr2
    inc dword ptr [exceptions]
    cmp dword ptr [exceptions], 2
    ja  triple_fault                        # the report itself goes wrong
    lea rax, [report_stack_top - 8]
    push USER_DATA
    push rax
    push 0x2
    push USER_CODE
    lea rax, [report_exception]
    push rax
    iretq

triple_fault:
    lidt [no_idt_pointer]
    ud2
    jmp triple_fault

# HLT is privileged, so at CPL 3 it raises #GP: that is how CPL 3 asks for a service. The number is in rax, arguments
# are in rdi and rsi, the answer is in rax; rcx, rdx, rdi and rsi are lost.
general_protection:
    test byte ptr [rsp + 16], 3             # code selector: from CPL 3?
    jz  kernel_protection
    push rbx
    mov rbx, [rsp + 16]
    cmp byte ptr [rbx], 0xf4
    pop rbx
    jne not_a_service
    inc qword ptr [rsp + 8]                 # past the HLT
    add rsp, 8                              # the error code
    cmp eax, 1
    jb  service_halt
    je  service_print
    cmp eax, 3
    jb  service_write_msr
    je  service_allow_interrupts
    cmp eax, 5
    je  service_take_byte
    jmp triple_fault

not_a_service:
    push 13
    jmp exception

# Waits for an interrupt, unless an event is pending already.
service_halt:
    mov rcx, rsp
    and rcx, -0x1000
    cmp dword ptr [rcx + PENDING], 0
    jne 1f
    sti
    hlt
    cli
1:  iretq

# Writes rsi bytes at rdi to the serial port.
service_print:
    mov rcx, rsi
    mov rsi, rdi
    mov edx, 0x3f8
    rep outsb
    iretq

# Writes rsi to the model-specific register rdi; answers 0, or 1 if there is no such register.
service_write_msr:
    mov ecx, edi
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
write_msr:
    wrmsr
    xor eax, eax
    iretq
no_such_msr:
    mov eax, 1
    iretq

# From now on interrupts are taken.
service_allow_interrupts:
    or  dword ptr [rsp + 16], 0x200
    iretq

# Takes a byte from the serial port (16550); answers 1, or 0 if none has come.
service_take_byte:
    mov edx, 0x3fd                          # line status
    in  al, dx
    and eax, 1                              # has data
    jz  1f
    mov edx, 0x3f8
    in  al, dx
    mov eax, 1
1:  iretq

kernel_protection:
    push rax
    lea rax, [write_msr]
    cmp [rsp + 16], rax
    pop rax
    jne not_a_service
    lea rax, [no_such_msr]
    mov [rsp + 8], rax
    add rsp, 8
    iretq

# What other processors start with, in real mode: copied to the page at TRAMPOLINE, which is also its segment.
.set TRAMPOLINE, 0x10000
.globl trampoline_start, trampoline_end
.balign 16
trampoline_start:
.code16
    cli
    cld
    mov ax, cs
    mov ds, ax
    .byte 0x0f, 0x01, 0x16                  # lgdt, with a 16-bit offset into the segment
    .word trampoline_gdt_pointer - trampoline_start
    mov eax, 0x11
    mov cr0, eax
    .byte 0x66, 0xea                        # far jump to 32-bit code
    .long TRAMPOLINE + (trampoline_32 - trampoline_start)
    .word 0x08
.code32
trampoline_32:
    mov ax, 0x10
    mov ds, ax
    mov ss, ax
    mov eax, 0x620
    mov cr4, eax
    lea eax, [page_map]
    mov cr3, eax
    mov ecx, 0xc0000080                     # EFER
    xor edx, edx
    mov eax, 0x100                          # long mode
    wrmsr
    mov eax, 0x80010033
    mov cr0, eax
    .byte 0xea                              # far jump to 64-bit code
    .long ap_entry
    .word 0x18
.code64
.balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00af9b000000ffff
trampoline_gdt_pointer:
    .word 31
    .long TRAMPOLINE + (trampoline_gdt - trampoline_start)
trampoline_end:

.section .tables, "aw"
# The first GiB and, empty, the others: CPL 3 adds what it needs by itself. Everything is accessible to CPL 3.
.balign 4096
.globl page_map
page_map:
    .quad page_directory_pointers + 7
    .zero 4088
.globl page_directory_pointers
page_directory_pointers:
    .quad first_page_directory + 7
    .zero 4088
.globl first_page_directory
first_page_directory:
    .set index, 0
    .rept 512
    .quad (index << 21) | 0x87              # 2 MiB, user, writable, present
    .set index, index + 1
    .endr

.balign 4096
.globl boot_cpu
boot_cpu:
    .long 0, 0
    .quad boot_stack_top - 8
    .quad boot_main
    .quad 0
    .balign 64
    .long 0                                 # TSS
    .quad boot_cpu + 0x1000
    .zero 90
    .word 104                               # I/O bitmap: CPL 3 may use ports below 0x100. (An I/O privilege level
    .zero 32                                # would do as well, but some hosts do not honour it.)
    .byte 0xff
    .zero 55
    .quad 0
    .quad 0x00af9b000000ffff                # kernel code
    .quad 0x00cf93000000ffff                # kernel data
    .quad 0x00cff3000000ffff                # user data
    .quad 0x00affb000000ffff                # user code
    .quad 0x0000890000000088                # TSS, low half
    .quad 0
    .word 55
    .quad boot_cpu + GDT

.section .data.entry, "aw"
.balign 8
.globl idt_pointer
idt_pointer:
    .word 4095
    .quad idt
no_idt_pointer:
    .word 0
    .quad 0
exceptions:
    .long 0
.balign 8
.globl ap_block
ap_block:
    .quad 0

.section .bss.entry, "aw", @nobits
.balign 4096
.globl idt
idt:
    .zero 4096
report_stack:
    .zero 16384
report_stack_top:
boot_stack:
    .zero 65536
boot_stack_top:

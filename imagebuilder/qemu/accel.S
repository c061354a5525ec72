# The tiny guest of accel.py: 4 KiB of firmware that uses of a processor what an operating system uses of it.
#
#   as accel.S -o accel.o && ld -Ttext=0 --oformat binary -e 0 accel.o -o accel.bin
#
# It runs at f000:f000 = 0xff000 from the reset vector on, writes a letter to port 0x402 after every step and 0x10 to
# port 0xf4 at the end (isa-debug-exit ends QEMU with 0x10 << 1 | 1 = 33). Nothing is written to where it lies: ROM.
# Steps: r real mode, c CPUID, p protected mode, t interrupt controllers and timer, m MSRs, l long mode with paging,
# u invalid opcode, f page fault, s ring 3 with SYSRET and SYSCALL, x SSE, w two million turns of a loop, i interrupts.

    .set BASE, 0xff000
    .set PML4, 0x10000
    .set GDT, 0x13000
    .set IDT, 0x14000

    .macro step letter
    mov $0x402, %dx
    mov $\letter, %al
    out %al, %dx
    .endm

    .macro outb value, port
    mov $\value, %al
    out %al, $\port
    .endm

    .code16
real:
    cli
    cld
    xor %ax, %ax
    mov %ax, %ss
    mov $0x8000, %sp
    step 'r'
    mov $0x80000001, %eax
    cpuid
    step 'c'

    mov $(PML4 >> 4), %ax            # the first 16 MiB are mapped one to one, with 2 MiB pages that ring 3 may use
    mov %ax, %es
    xor %di, %di
    xor %eax, %eax
    mov $0x1400, %cx
    rep stosl                        # page tables, GDT, IDT
    movl $(PML4 + 0x1007), %es:0
    movl $(PML4 + 0x2007), %es:0x1000
    mov $0x2000, %di
    mov $0x87, %eax
1:  mov %eax, %es:(%di)
    add $0x200000, %eax
    add $8, %di
    cmp $0x2040, %di
    jb 1b

    mov $(BASE >> 4), %ax            # the GDT must lie in RAM: LTR writes to it
    mov %ax, %ds
    mov $(gdt - real), %si
    mov $(GDT - PML4), %di
    mov $(gdt_end - gdt), %cx
    rep movsb
    lgdtl gdtr - real
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x08, $(protected - real + BASE)

    .code32
protected:
    mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x8000, %esp
    step 'p'
    outb 0x11, 0x20                  # both 8259: vectors 0x20 and 0x28, only the timer's line open
    outb 0x11, 0xa0
    outb 0x20, 0x21
    outb 0x28, 0xa1
    outb 4, 0x21
    outb 2, 0xa1
    outb 1, 0x21
    outb 1, 0xa1
    outb 0xfe, 0x21
    outb 0xff, 0xa1
    outb 0x34, 0x43                  # 8254: 100 ticks a second
    outb 0x9c, 0x40
    outb 0x2e, 0x40
    movl $0x700, 0xfee00350          # local APIC: pass on what the 8259 says
    movl $0x1ff, 0xfee000f0
    step 't'
    mov %cr4, %eax
    or $0x620, %eax                  # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $PML4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx            # EFER: LME, SCE
    rdmsr
    or $0x101, %eax
    wrmsr
    step 'm'
    mov %cr0, %eax
    and $~4, %eax
    or $0x80010002, %eax             # PG, WP, MP
    mov %eax, %cr0
    ljmpl $0x18, $(long - real + BASE)

    .code64
long:
    step 'l'
    mov $0x20000, %esp
    mov $(undefined - real + BASE), %eax
    mov $6, %ecx
    call gate
    mov $(fault - real + BASE), %eax
    mov $14, %ecx
    call gate
    mov $(tick - real + BASE), %eax
    mov $0x20, %ecx
    call gate
    lidt idtr(%rip)
    mov $0x40, %ax
    ltr %ax
    ud2
    step 'u'
    mov $0x7000000, %ebx
    mov (%rbx), %eax                 # not mapped: the handler maps it
    step 'f'

    mov $0xc0000081, %ecx            # STAR
    xor %eax, %eax
    mov $0x00230018, %edx
    wrmsr
    inc %ecx                         # LSTAR
    mov $(back - real + BASE), %eax
    xor %edx, %edx
    wrmsr
    mov $0xc0000084, %ecx            # SFMASK: interrupts
    mov $0x200, %eax
    wrmsr
    lea user(%rip), %rcx
    mov $2, %r11d
    sysretq
user:
    syscall
back:
    step 's'
    movq %rax, %xmm0
    paddq %xmm0, %xmm0
    rdtsc
    step 'x'
    mov $2000000, %ecx
1:  dec %ecx
    jnz 1b
    step 'w'
    xor %ebp, %ebp
    sti
2:  hlt
    cmp $3, %ebp
    jb 2b
    cli
    step 'i'
    mov $0xf4, %dx
    mov $0x10, %al
    out %al, %dx
3:  hlt
    jmp 3b

gate:                                # entry %ecx of the IDT: an interrupt gate to %eax
    shl $4, %ecx
    add $IDT, %ecx
    mov %ax, (%rcx)
    movw $0x18, 2(%rcx)
    movw $0x8e00, 4(%rcx)
    shr $16, %eax
    mov %ax, 6(%rcx)
    ret
undefined:
    addq $2, (%rsp)
    iretq
fault:
    add $8, %rsp                     # the error code
    movl $0x200087, PML4 + 0x2000 + (0x7000000 >> 21) * 8
    iretq
tick:
    push %rax
    outb 0x20, 0x20
    pop %rax
    inc %ebp
    iretq

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff         # 08 code, 32 bits
    .quad 0x00cf93000000ffff         # 10 data
    .quad 0x00af9b000000ffff         # 18 code, 64 bits
    .quad 0x00cf93000000ffff         # 20 data: SYSCALL's stack segment is its code segment + 8
    .quad 0, 0, 0
    .quad 0x0000890150000067, 0      # 40 task state at 0x15000
gdt_end:
gdtr:
    .word gdt_end - gdt - 1
    .long GDT
idtr:
    .word 0x20f
    .quad IDT
end:
    .org 0xff0
    .code16
    jmp real
    .org 0x1000, 0xf4

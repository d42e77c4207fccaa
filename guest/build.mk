# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# How C becomes programs for the virtual processor. Read by the Makefile above; it also stands alone, for
# `make -f guest/build.mk build/guest/snapshot.elf` in any directory that has guest/ in it.
#
# The same compiler makes the same bytes: objects are linked in sorted order, and nothing of what is shipped
# depends on a path, a date or a build id.

.DELETE_ON_ERROR:

# A guest for each family of operations: guest/families says which, and the linker leaves out what they do not need.
FAMILIES := $(sort $(basename $(notdir $(wildcard guest/families/*.c))))
GUEST_ROOMS := $(sort $(filter-out guest/abi guest/families,$(patsubst %/,%,$(wildcard guest/*/))))
GUEST_SOURCES := $(sort $(foreach room,$(GUEST_ROOMS),$(wildcard $(room)/*.c)))

GUEST_COMPILE := LC_ALL=C gcc -std=c11 -ffreestanding -fno-pic -fno-stack-protector -mno-red-zone -mcmodel=small \
	-msse2 -fcf-protection=none -fno-asynchronous-unwind-tables -fno-ident -Wall -Wextra -Werror -Iguest \
	-ffunction-sections -fdata-sections -falign-functions=1 -falign-jumps=1 -falign-loops=1
# What is done for each entry of a table or each cluster is compiled to be fast; all else to be small, for it travels to
# a managed host with each task.
GUEST_HOT := start/memory $(addprefix qcow2/,bits counters lookup refcount_blocks refcount_cache refcounts references \
	tables tally verify writer) bitmaps/content chain/chain vmdk/grains operations/commit operations/rebase
GUEST_OPTIMIZE = $(if $(filter $(GUEST_HOT:%=build/obj/guest/%.o),$@),-O2,-Os)
# Where what lies, from enum memory_map.
GUEST_MAP := $(shell sed -nE 's/^ *([A-Z]+_ADDRESS) = (0x[0-9a-f]+).*/-Wl,--defsym=\1=\2/p' guest/abi/doorbell.h)
GUEST_LINK := LC_ALL=C gcc -nostdlib -static -no-pie -Wl,--gc-sections -Wl,--build-id=none -Wl,-z,noexecstack \
	$(GUEST_MAP) -Wl,-T,guest/start/guest.ld
# Compression, of which the linker takes what is used.
GUEST_LIBRARIES := -l:libz.a -l:libzstd.a

build/obj/%.o: %.c guest/build.mk
	@mkdir -p $(@D)
	@$(GUEST_COMPILE) $(GUEST_OPTIMIZE) -MMD -MP -c -o $@ $<

# The directories' times change when a file comes or goes.
build/guest/%.elf: build/obj/guest/families/%.o $(GUEST_SOURCES:%.c=build/obj/%.o) guest/start/guest.ld guest/build.mk $(GUEST_ROOMS)
	@mkdir -p $(@D)
	@$(GUEST_LINK) $(sort $(filter %.o,$^)) $(GUEST_LIBRARIES) -o $@

# Guests of one file, for tests of what holds them in.
build/hostile/%.elf: build/obj/tests/hostile_guest/%.o build/obj/guest/start/start.o build/obj/guest/start/memory.o guest/start/guest.ld
	@mkdir -p $(@D)
	@$(GUEST_LINK) $(sort $(filter %.o,$^)) $(GUEST_LIBRARIES) -o $@

.PRECIOUS: build/obj/%.o build/guest/%.elf
-include $(wildcard $(patsubst %,build/obj/%/*.d,$(GUEST_ROOMS) guest/families tests/hostile_guest))

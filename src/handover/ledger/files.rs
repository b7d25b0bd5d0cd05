//! The open files: what a handle's number means. The store's file itself is a descriptor that the keeper
//! holds under the same number.

use super::table::Table;

/// Further groups of an opener are not carried.
const GROUPS_MAX: usize = 64;

/// Words of a slot, after the one that says whether it is used.
mod word {
    pub const NUMBER: usize = 1;
    pub const NODEID: usize = 2;
    pub const UNIQUE: usize = 3;
    pub const MODE: usize = 4;
    pub const WHY: usize = 5;
    pub const BACKING: usize = 6;
    pub const UID_GID: usize = 7;
    pub const GROUP_COUNT: usize = 8;
    pub const GROUPS: usize = 9;
}

/// Bits of the word for the mode.
const READ: u64 = 1;
const WRITE: u64 = 2;
const SYNC: u64 = 4;
const CLOSING: u64 = 8;

/// Which slot an open file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSlot(u32);

/// An open file as the ledger has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarriedFile {
    /// What the kernel calls it.
    pub number: u64,
    /// The inode it opens.
    pub nodeid: u64,
    /// The OPEN or CREATE that made it.
    pub unique: u64,
    pub read: bool,
    pub write: bool,
    /// Every write is durable before it is acknowledged.
    pub sync: bool,
    /// Why it goes through the daemon, in the mount's numbers.
    pub why: u8,
    /// The backing id by which the kernel reads it itself.
    pub backing: Option<u32>,
    /// Who opened it.
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The kernel has closed it: only what the server has of it is left.
    pub closing: bool,
}

/// The table of open files.
pub struct FileTable(pub(super) Table);

impl FileTable {
    /// Notes an open file; `None` when it cannot be carried.
    pub fn add(&self, file: &CarriedFile) -> Option<FileSlot> {
        let Some(number) = self.0.take() else {
            self.0.tell_full();
            return None;
        };
        let bit = |is: bool, bit: u64| if is { bit } else { 0 };
        let mode = bit(file.read, READ) | bit(file.write, WRITE) | bit(file.sync, SYNC);
        let groups = &file.groups[..file.groups.len().min(GROUPS_MAX)];
        let group_bytes: Vec<u8> = groups.iter().flat_map(|id| id.to_ne_bytes()).collect();
        let slot = self.0.slot(number);
        slot.set(word::NUMBER, file.number);
        slot.set(word::NODEID, file.nodeid);
        slot.set(word::UNIQUE, file.unique);
        slot.set(word::MODE, mode);
        slot.set(word::WHY, u64::from(file.why));
        slot.set(
            word::BACKING,
            file.backing.map_or(0, |id| u64::from(id) + 1),
        );
        slot.set(
            word::UID_GID,
            u64::from(file.uid) | (u64::from(file.gid) << 32),
        );
        slot.set(word::GROUP_COUNT, groups.len() as u64);
        slot.set_bytes(word::GROUPS, &group_bytes);
        slot.mark_used();
        Some(FileSlot(number))
    }

    /// The kernel has closed it; what belongs to it is about to be given back, and then it is removed.
    pub fn closing(&self, file: FileSlot) {
        let slot = self.0.slot(file.0);
        slot.set(word::MODE, slot.get(word::MODE) | CLOSING);
    }

    /// It is closed.
    pub fn remove(&self, file: FileSlot) {
        self.0.free(file.0);
    }

    /// Everything in it.
    pub fn all(&self) -> Vec<(FileSlot, CarriedFile)> {
        let used = self.0.used().into_iter();
        used.map(|number| (FileSlot(number), self.carried(number)))
            .collect()
    }

    fn carried(&self, number: u32) -> CarriedFile {
        let slot = self.0.slot(number);
        let (mode, ids) = (slot.get(word::MODE), slot.get(word::UID_GID));
        let groups = (slot.get(word::GROUP_COUNT) as usize).min(GROUPS_MAX);
        let group_bytes = slot.bytes(word::GROUPS, groups * size_of::<u32>());
        let group = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_ne_bytes);
        CarriedFile {
            number: slot.get(word::NUMBER),
            nodeid: slot.get(word::NODEID),
            unique: slot.get(word::UNIQUE),
            read: mode & READ != 0,
            write: mode & WRITE != 0,
            sync: mode & SYNC != 0,
            closing: mode & CLOSING != 0,
            why: slot.get(word::WHY) as u8,
            backing: slot.get(word::BACKING).checked_sub(1).map(|id| id as u32),
            uid: ids as u32,
            gid: (ids >> 32) as u32,
            groups: group_bytes
                .chunks_exact(size_of::<u32>())
                .map(group)
                .collect(),
        }
    }
}

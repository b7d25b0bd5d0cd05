//! The rows of the comparisons: which I/O is measured.

use std::time::Duration;

use crate::fio::Job;
use crate::lane::Lane;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// The page of the cache.
pub const PAGE: u64 = 4096;

/// One kind of I/O.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub access: Access,
    pub block: u64,
    /// Every offset is this much past a multiple of `block`.
    pub offset: u64,
    pub depth: u32,
    pub jobs: u32,
    pub fdatasync: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    RandomRead,
    RandomWrite,
    Read,
    Write,
}

impl Access {
    pub fn writes(self) -> bool {
        matches!(self, Access::RandomWrite | Access::Write)
    }

    fn is_random(self) -> bool {
        matches!(self, Access::RandomRead | Access::RandomWrite)
    }
}

impl Row {
    pub const fn random(access: Access, depth: u32, jobs: u32) -> Row {
        Row {
            access,
            block: 4 * KIB,
            offset: 0,
            depth,
            jobs,
            fdatasync: false,
        }
    }

    const fn sequential(access: Access, block: u64) -> Row {
        Row {
            block,
            ..Row::random(access, 4, 1)
        }
    }

    pub fn name(&self) -> String {
        let access = match self.access {
            Access::RandomRead => "random read",
            Access::RandomWrite => "random write",
            Access::Read => "sequential read",
            Access::Write => "sequential write",
        };
        let block = match self.block {
            block if block >= MIB => format!("{} MiB", block / MIB),
            block if block >= KIB => format!("{} KiB", block / KIB),
            block => format!("{block} B"),
        };
        let offset = match self.offset {
            0 => String::new(),
            offset => format!(" at +{offset}"),
        };
        let depth = match self.jobs {
            1 => format!("QD {}", self.depth),
            jobs => format!("{jobs} × QD {}", self.depth),
        };
        let sync = if self.fdatasync { " + fdatasync" } else { "" };
        format!("{access} {block}{offset}{sync}, {depth}")
    }

    /// What the rows are compared by.
    pub fn unit(&self) -> &'static str {
        if self.access.is_random() {
            "IOPS"
        } else {
            "MB/s"
        }
    }

    /// The row with the same I/O at multiples of the block, if this one is off them.
    pub fn aligned(&self) -> Option<Row> {
        let aligned = Row {
            offset: 0,
            ..self.clone()
        };
        (self.offset != 0).then_some(aligned)
    }

    /// Whether a disk with sectors of 4096 bytes refuses it.
    pub fn needs_small_sectors(&self) -> bool {
        !self.block.is_multiple_of(PAGE) || !self.offset.is_multiple_of(PAGE)
    }

    /// The job on a lane's file of `bytes`.
    pub fn job(&self, lane: &Lane, bytes: u64, runtime: Duration) -> Job {
        Job {
            file: lane.file.clone(),
            rw: match self.access {
                Access::RandomRead => "randread",
                Access::RandomWrite => "randwrite",
                Access::Read => "read",
                Access::Write => "write",
            },
            read_write: lane.opens_to_write(),
            block: self.block,
            offset: self.offset,
            size: if self.offset == 0 {
                bytes
            } else {
                bytes - self.block
            },
            depth: self.depth,
            jobs: self.jobs,
            fdatasync: self.fdatasync,
            runtime: Some(runtime),
        }
    }
}

/// All rows of the warm lanes, or without those of several jobs and of writes that are no whole pages. An aligned
/// row stands before what is measured against it.
pub fn warm(quick: bool) -> Vec<Row> {
    let mut rows = random(Access::RandomRead);
    rows.extend([64 * KIB, MIB].map(|block| Row::sequential(Access::Read, block)));
    rows.extend(random(Access::RandomWrite));
    rows.extend([64 * KIB, MIB].map(|block| Row::sequential(Access::Write, block)));
    rows.push(Row {
        fdatasync: true,
        ..Row::random(Access::RandomWrite, 1, 1)
    });
    let is_left_out =
        |row: &Row| row.jobs > 1 || (row.access.writes() && row.needs_small_sectors());
    rows.retain(|row| !quick || !is_left_out(row));
    rows
}

/// 4 KiB, 512 B, and 4 KiB at +512, each at every depth.
fn random(access: Access) -> Vec<Row> {
    let depths = [(1, 1), (32, 1), (16, 2)];
    let shapes = [(4 * KIB, 0), (SECTOR, 0), (4 * KIB, SECTOR)];
    let of_depth = |(depth, jobs)| {
        shapes.map(|(block, offset)| Row {
            block,
            offset,
            ..Row::random(access, depth, jobs)
        })
    };
    depths.into_iter().flat_map(of_depth).collect()
}

/// What session loops are compared by.
pub fn sessions() -> Vec<Row> {
    let of = |access| [1, 32].map(|depth| Row::random(access, depth, 1));
    [of(Access::RandomRead), of(Access::RandomWrite)].concat()
}

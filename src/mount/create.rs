//! Making an image and opening it in one step.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::again::Making;
use super::answer::{Answer, Entry, Opened, open_mode};
use super::core::{Core, with};
use super::files::{OpenFile, Opening};
use super::nodes::Inode;
use super::once::Once;
use crate::image::plane::Why;
use crate::store::{Attr, Caller, Error, Kind, Node, OpenMode, Result, StoreFile};

/// What a creation has led to.
enum Created {
    New(Node, Attr, Arc<dyn StoreFile>),
    /// By the same request, when a server before carried it out; with the handle that it made then.
    Before(Attr, u64, Arc<OpenFile>),
}

impl Core {
    pub fn create(
        self: &Arc<Self>,
        who: Caller,
        (parent, name): (u64, OsString),
        (permissions, umask): (u32, u32),
        flags: i32,
        once: Once,
        answer: Answer<(Entry, Opened)>,
    ) {
        let mode = open_mode(flags);
        let exclusive = flags & libc::O_EXCL != 0;
        with(answer, self.inode(parent), |answer, dir| {
            let (nodeid, told) = (dir.nodeid, name.clone());
            let opening = Opening { who, mode, once };
            let (who, once) = (opening.who.clone(), opening.once.clone());
            self.ask(
                "create",
                answer,
                move |core| {
                    if let Some(before) = core.created_and_opened_before(&once) {
                        return before;
                    }
                    let permissions = core.masked(&who, &dir, permissions, umask);
                    once.asks([None, None]);
                    let made = core.store.create(&who, &dir.node, &name, permissions, mode);
                    core.or_created_before(made, &who, (&dir, &name), mode, &once)
                        .map_err(|error| found_meanwhile(error, exclusive))
                },
                move |core, created| core.created(nodeid, &told, created, &opening),
            );
        });
    }

    fn created(
        &self,
        parent: u64,
        name: &OsStr,
        created: Created,
        opening: &Opening,
    ) -> Result<(Entry, Opened)> {
        match created {
            Created::New(node, attr, file) => {
                let inode = self.enter(parent, name, node, &attr);
                let entry = self.entry(&inode, &attr);
                Ok((entry, self.opened_new(inode, file, &attr, opening)?))
            }
            Created::Before(attr, number, file) => {
                let inode = self.enter(parent, name, file.inode.node.clone(), &attr);
                let entry = self.entry(&inode, &attr);
                let backing = file.backing();
                Ok((entry, Opened { number, backing }))
            }
        }
    }

    /// The file that this request made and opened when a server before carried it out.
    fn created_and_opened_before(&self, once: &Once) -> Option<Result<Created>> {
        let number = self.opened_before(once)?;
        let Some(file) = self.files.get(number) else {
            self.close_file(number); // it could not be taken on
            return None;
        };
        let attr = self.store.attr(&self.callers.own(), &file.inode.node);
        Some(attr.map(|attr| Created::Before(attr, number, file)))
    }

    /// What was made; after EEXIST, what this request made when it came before and did not get to open. Its
    /// permissions may forbid to open it now what its creation opened, so the daemon does it.
    fn or_created_before(
        &self,
        made: Result<(Node, Attr, Arc<dyn StoreFile>)>,
        who: &Caller,
        (dir, name): (&Inode, &OsStr),
        mode: OpenMode,
        once: &Once,
    ) -> Result<Created> {
        let error = match made {
            Ok((node, attr, file)) => return Ok(Created::New(node, attr, file)),
            Err(error) => error,
        };
        let wanted = Making::Kind(Kind::File);
        let before = match error.errno() {
            libc::EEXIST => self.made_before(who, dir, name, &wanted, once),
            _ => None,
        };
        let Some((node, attr)) = before else {
            return once.told(Err(error));
        };
        let file = match self.store.open(who, &node, mode) {
            Err(refused) if refused.errno() == libc::EACCES => {
                self.store.open(&self.callers.own(), &node, mode)?
            }
            opened => opened?,
        };
        Ok(Created::New(node, attr, file))
    }

    /// Opens an image that has just been made. Nobody can have said yet that it is immutable, and a rule that
    /// says so must let it come into being.
    fn opened_new(
        &self,
        inode: Arc<Inode>,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
        opening: &Opening,
    ) -> Result<Opened> {
        let (seats, mode) = (&self.images.seats, opening.mode);
        let seat = match mode.write {
            true => Some(seats.sit_to_write(inode.id)?),
            false => seats.sit_to_read(inode.id, Some(Why::NotImmutable))?,
        };
        let seat = seat.ok_or_else(|| Error::from_errno(libc::EIO))?;
        let handle = self.join(&inode, file, attr, mode)?;
        self.opened(inode, handle, seat, opening)
    }
}

/// The kernel asks for a creation because it saw no such name. If one has come up meanwhile (another
/// host made it) and that is no error to the caller, ESTALE makes the kernel look again.
fn found_meanwhile(error: Error, exclusive: bool) -> Error {
    if error.errno() == libc::EEXIST && !exclusive {
        return Error::from_errno(libc::ESTALE);
    }
    error
}

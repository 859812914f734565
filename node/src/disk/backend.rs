//! The file under the database, which can be opened as a rehearsal.
//!
//! redb repairs a store while opening it, so a damaged one could be altered before the damage shows. While a backend
//! rehearses, writes are kept in memory, in order; once everything was read and found good they are carried out as they
//! would have been, barriers included, so a crash in between is no different from one during the repair itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

const PAGE_BYTES: u64 = 4096;

/// A handle on the file; clones are the same file.
#[derive(Debug, Clone)]
pub(super) struct Backend(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    file: File,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    Rehearsing(Rehearsal),
    Live,
    /// A write failed. Nothing more is written, above all no note that the file was closed in good order.
    Dead,
}

/// What would have been done to the file.
#[derive(Debug)]
struct Rehearsal {
    len: u64,
    /// Pages that differ from the file's.
    pages: BTreeMap<u64, Vec<u8>>,
    script: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    SetLen(u64),
    Write(u64, Vec<u8>),
    Sync,
}

impl Backend {
    /// Takes a file whose every write counts.
    pub(super) fn live(file: File) -> Self {
        Self(Arc::new(Mutex::new(Inner { file, mode: Mode::Live })))
    }

    /// Takes a file that stays as it is until [`Backend::perform`].
    pub(super) fn rehearsing(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let mode = Mode::Rehearsing(Rehearsal { len, pages: BTreeMap::new(), script: Vec::new() });
        Ok(Self(Arc::new(Mutex::new(Inner { file, mode }))))
    }

    /// Carries out what was rehearsed; from now on every write counts.
    pub(super) fn perform(&self) -> io::Result<()> {
        let mut inner = self.inner();
        let Inner { file, mode } = &mut *inner;
        let Mode::Rehearsing(rehearsal) = std::mem::replace(mode, Mode::Dead) else {
            return Err(dead());
        };
        for step in rehearsal.script {
            match step {
                Step::SetLen(len) => file.set_len(len)?,
                Step::Write(offset, data) => file.write_all_at(&data, offset)?,
                Step::Sync => file.sync_data()?,
            }
        }
        *mode = Mode::Live;
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Whatever a panic leaves behind is on the safe side: either nothing was changed or the mode is `Dead`.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Changes the file, or notes what would be changed.
    fn change(
        &mut self,
        live: impl FnOnce(&File) -> io::Result<()>,
        rehearse: impl FnOnce(&mut Rehearsal, &File) -> io::Result<()>,
    ) -> io::Result<()> {
        let result = match &mut self.mode {
            Mode::Rehearsing(rehearsal) => rehearse(rehearsal, &self.file),
            Mode::Live => live(&self.file),
            Mode::Dead => Err(dead()),
        };
        if result.is_err() {
            self.mode = Mode::Dead;
        }
        result
    }
}

fn dead() -> io::Error {
    io::Error::other("an earlier write failed")
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let inner = self.inner();
        match &inner.mode {
            Mode::Rehearsing(rehearsal) => Ok(rehearsal.len),
            Mode::Live | Mode::Dead => Ok(inner.file.metadata()?.len()),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.inner();
        match &inner.mode {
            Mode::Rehearsing(rehearsal) => rehearsal.read(&inner.file, offset, out),
            Mode::Live | Mode::Dead => inner.file.read_exact_at(out, offset),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let rehearse = |rehearsal: &mut Rehearsal, file: &File| rehearsal.set_len(file, len);
        self.inner().change(|file| file.set_len(len), rehearse)
    }

    fn sync_data(&self) -> io::Result<()> {
        let rehearse = |rehearsal: &mut Rehearsal, _: &File| {
            rehearsal.script.push(Step::Sync);
            Ok(())
        };
        self.inner().change(File::sync_data, rehearse)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let rehearse = |rehearsal: &mut Rehearsal, file: &File| rehearsal.write(file, offset, data);
        self.inner().change(|file| file.write_all_at(data, offset), rehearse)
    }
}

impl Rehearsal {
    fn read(&self, file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read_or_zeros(file, offset, out)?;
        for_each_page(offset, out.len(), |page, in_page, in_data| {
            if let Some(bytes) = self.pages.get(&page) {
                out[in_data].copy_from_slice(&bytes[in_page]);
            }
            Ok(())
        })
    }

    fn write(&mut self, file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
        for_each_page(offset, data.len(), |page, in_page, in_data| {
            self.page(file, page)?[in_page].copy_from_slice(&data[in_data]);
            Ok(())
        })?;
        self.len = self.len.max(offset + data.len() as u64);
        self.script.push(Step::Write(offset, data.to_vec()));
        Ok(())
    }

    fn set_len(&mut self, file: &File, len: u64) -> io::Result<()> {
        // What is cut off reads as zeros if the file grows again.
        for page in len / PAGE_BYTES..self.len.div_ceil(PAGE_BYTES) {
            let keep = len.saturating_sub(page * PAGE_BYTES) as usize;
            self.page(file, page)?[keep..].fill(0);
        }
        self.len = len;
        self.script.push(Step::SetLen(len));
        Ok(())
    }

    /// Returns a page as it would be, to be changed.
    fn page(&mut self, file: &File, page: u64) -> io::Result<&mut [u8]> {
        match self.pages.entry(page) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let mut bytes = vec![0; PAGE_BYTES as usize];
                read_or_zeros(file, page * PAGE_BYTES, &mut bytes)?;
                Ok(entry.insert(bytes))
            }
        }
    }
}

/// Reads from the file; what lies behind its end is zero.
fn read_or_zeros(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read_at(&mut out[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    out[filled..].fill(0);
    Ok(())
}

/// Calls `act` with each page that the range touches: its number, the range within it, and the range within the data.
fn for_each_page(
    offset: u64,
    len: usize,
    mut act: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let start = (at % PAGE_BYTES) as usize;
        let count = (PAGE_BYTES as usize - start).min(len - done);
        act(at / PAGE_BYTES, start..start + count, done..done + count)?;
        done += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Write(u64, Vec<u8>),
        SetLen(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let write =
            (0..20_000u64, proptest::collection::vec(any::<u8>(), 1..9000)).prop_map(|(at, data)| Act::Write(at, data));
        let set_len = (0..30_000u64).prop_map(Act::SetLen);
        proptest::collection::vec(prop_oneof![write, set_len], 0..12)
    }

    fn content(mut file: &File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Against a live backend on a copy: reads agree at every point, the file stays untouched, and performing makes
        /// both files equal.
        #[test]
        fn a_rehearsal_reads_as_if_it_were_done(first in proptest::collection::vec(any::<u8>(), 0..20_000), acts in acts()) {
            let [real, copy] = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
            real.write_all_at(&first, 0).unwrap();
            copy.write_all_at(&first, 0).unwrap();
            let rehearsing = Backend::rehearsing(real.try_clone().unwrap()).unwrap();
            let live = Backend::live(copy.try_clone().unwrap());
            for act in &acts {
                for backend in [&rehearsing, &live] {
                    match act {
                        Act::Write(offset, data) => backend.write(*offset, data).unwrap(),
                        Act::SetLen(len) => backend.set_len(*len).unwrap(),
                    }
                    backend.sync_data().unwrap();
                }
                let len = live.len().unwrap();
                prop_assert_eq!(rehearsing.len().unwrap(), len);
                let [mut ours, mut theirs] = [vec![0; len as usize], vec![0; len as usize]];
                rehearsing.read(0, &mut ours).unwrap();
                live.read(0, &mut theirs).unwrap();
                prop_assert_eq!(ours, theirs);
                prop_assert!(rehearsing.read(len, &mut [0]).is_err());
            }
            prop_assert_eq!(content(&real), first);
            rehearsing.perform().unwrap();
            let mut real = real;
            std::io::Seek::rewind(&mut real).unwrap();
            prop_assert_eq!(content(&real), content(&copy));
        }
    }
}

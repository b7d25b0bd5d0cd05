//! Where the chunks of a page map are: a table of two levels, so that an image of many TiB with a few
//! cached blocks costs little: 8 bytes for each GiB before its last cached block, and 1 KiB for each GiB
//! with cached blocks in it, now or once.

use super::chunk::{Chunk, Counts};

/// Places in a section: 1 GiB of the image.
const SECTION_PLACES: u64 = 64;

/// Where a chunk may be.
#[derive(Default)]
pub struct Place {
    pub chunk: Option<Box<Chunk>>,
    /// The counts of the chunk that was here last.
    counts: Counts,
}

type Section = [Place; SECTION_PLACES as usize];

/// All places of an image. Chunks are meant by their number.
#[derive(Default)]
pub struct Places {
    sections: Vec<Option<Box<Section>>>,
}

impl Place {
    /// The counts of the chunk that is here or was.
    pub fn counts(&self) -> Counts {
        match &self.chunk {
            Some(chunk) => chunk.counts(),
            None => self.counts,
        }
    }

    /// Makes a chunk if there is none.
    pub fn fill(&mut self) {
        let counts = self.counts;
        self.chunk.get_or_insert_with(|| Chunk::new(counts));
    }

    /// Lets the chunk go if it is idle. Counts as a drop.
    pub fn empty(&mut self) {
        if let Some(chunk) = self.chunk.take_if(|chunk| chunk.is_idle()) {
            chunk.count_drop();
            self.counts = chunk.counts();
        }
    }
}

impl Places {
    /// The place of a chunk, if it was ever used.
    pub fn get(&self, number: u64) -> Option<&Place> {
        let section = self.sections.get((number / SECTION_PLACES) as usize)?;
        section
            .as_ref()
            .map(|section| &section[(number % SECTION_PLACES) as usize])
    }

    /// The place of a chunk.
    pub fn get_mut(&mut self, number: u64) -> &mut Place {
        let at = (number / SECTION_PLACES) as usize;
        if self.sections.len() <= at {
            self.sections.resize_with(at + 1, || None);
        }
        let section = self.sections[at]
            .get_or_insert_with(|| Box::new(std::array::from_fn(|_| Place::default())));
        &mut section[(number % SECTION_PLACES) as usize]
    }

    /// All chunks, with their numbers, from chunk number `from`.
    pub fn chunks(&self, from: u64) -> impl Iterator<Item = (u64, &Chunk)> {
        let first = from / SECTION_PLACES;
        let sections = (first..).zip(self.sections.iter().skip(first as usize));
        sections
            .filter_map(|(number, section)| Some((number, section.as_ref()?)))
            .flat_map(|(number, section)| (number * SECTION_PLACES..).zip(section.iter()))
            .filter_map(|(number, place)| Some((number, place.chunk.as_deref()?)))
            .skip_while(move |(number, _)| *number < from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_far_apart_and_near() {
        let mut places = Places::default();
        let numbers = [0, 1, 63, 64, 1 << 20, (1 << 20) + 1];
        for number in numbers {
            places.get_mut(number).fill();
        }
        assert!(places.get(2).is_some_and(|place| place.chunk.is_none()));
        assert!(places.get(1 << 19).is_none() && places.get(1 << 40).is_none());
        let found = |from| Vec::from_iter(places.chunks(from).map(|(number, _)| number));
        assert_eq!(found(0), numbers);
        assert_eq!(found(64), numbers[3..]);
        assert_eq!(found(65), numbers[4..]);
        assert_eq!(found(1 << 40), [0u64; 0]);
    }
}

//! Pages that devices write, which KVM does not hear of: its log has what processors and itself write alone. As long
//! as nobody wants to know, a write costs a look at a flag, and nothing is kept.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use crate::memory::PAGE;

const BITS: usize = u64::BITS as usize;

/// Of one piece of the guest's memory. A bit for each page, in the order that KVM's log has.
#[derive(Debug, Default)]
pub struct Marks {
    on: AtomicBool,
    /// Bytes.
    length: usize,
    /// Once somebody has wanted to know.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl Marks {
    /// Forgets what it has and marks pages from now on.
    pub(crate) fn begin(&self) {
        let words = self.length.div_ceil(PAGE as usize).div_ceil(BITS);
        let words = self.words.get_or_init(|| (0..words).map(|_| AtomicU64::new(0)).collect());
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        // Whoever sees the flag sees empty words.
        self.on.store(true, Ordering::Release);
    }

    /// Marks no more.
    pub(crate) fn end(&self) {
        self.on.store(false, Ordering::Release);
    }

    /// What was marked since the begin.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        self.words.get().into_iter().flat_map(|words| words.iter()).map(|word| word.load(Ordering::Relaxed))
    }

    fn word(&self, page: usize) -> Option<&AtomicU64> {
        self.words.get()?.get(page / BITS)
    }
}

impl<'a> WithBitmapSlice<'a> for Marks {
    type S = MarksFrom<'a>;
}

impl Bitmap for Marks {
    fn mark_dirty(&self, offset: usize, length: usize) {
        if !self.on.load(Ordering::Acquire) || length == 0 {
            return;
        }
        let last = offset.saturating_add(length - 1) / PAGE as usize;
        for page in offset / PAGE as usize..=last {
            let Some(word) = self.word(page) else { return };
            word.fetch_or(1 << (page % BITS), Ordering::Relaxed);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE as usize;
        self.word(page).is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (page % BITS) != 0)
    }

    fn slice_at(&self, offset: usize) -> MarksFrom<'_> {
        MarksFrom { marks: self, from: offset }
    }
}

impl NewBitmap for Marks {
    fn with_len(length: usize) -> Self {
        Self { length, ..Self::default() }
    }
}

/// The marks from a place on: what a slice of the guest's memory has.
#[derive(Debug, Clone, Copy)]
pub struct MarksFrom<'a> {
    marks: &'a Marks,
    from: usize,
}

impl WithBitmapSlice<'_> for MarksFrom<'_> {
    type S = Self;
}

impl BitmapSlice for MarksFrom<'_> {}

impl Bitmap for MarksFrom<'_> {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.marks.mark_dirty(self.from.saturating_add(offset), length);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.marks.dirty_at(self.from.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { marks: self.marks, from: self.from.saturating_add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = PAGE as usize;

    fn marked(marks: &Marks) -> Vec<usize> {
        let words: Vec<u64> = marks.words().collect();
        (0..words.len() * BITS).filter(|page| words[page / BITS] & 1 << (page % BITS) != 0).collect()
    }

    #[test]
    fn pages_are_marked_between_begin_and_end_alone() {
        let marks = Marks::with_len(130 * SIZE);
        marks.mark_dirty(0, SIZE);
        assert!(marks.words.get().is_none(), "nothing is kept as long as nobody asks");
        marks.begin();
        // The end of one page and the beginning of the next; all of two; the last; nothing; and what is no memory.
        for (offset, length) in [(SIZE - 1, 2), (63 * SIZE, 2 * SIZE), (129 * SIZE, 1), (9 * SIZE, 0)] {
            marks.mark_dirty(offset, length);
        }
        marks.mark_dirty(usize::MAX - 1, 9);
        marks.slice_at(100 * SIZE).slice_at(SIZE).mark_dirty(SIZE, 1);
        marks.end();
        marks.mark_dirty(5 * SIZE, 1);
        assert_eq!(marked(&marks), [0, 1, 63, 64, 102, 129]);
        assert!(marks.dirty_at(64 * SIZE + 5) && !marks.dirty_at(65 * SIZE));
        marks.begin();
        assert_eq!(marked(&marks), [0; 0], "the next begins anew");
    }
}

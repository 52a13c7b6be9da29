//! A list that rarely has more than one item. Pure.

use std::collections::VecDeque;
use std::mem::replace;
use std::ops::{Index, IndexMut};

/// A list that holds its first item itself: with one item at a time it allocates nothing.
#[derive(Debug)]
pub struct ShortList<T>(ListItems<T>);

/// Also small, because an idle client has two such lists.
#[derive(Debug)]
enum ListItems<T> {
    Empty,
    One(T),
    Several(Box<SeveralItems<T>>),
}

/// Two items or more.
#[derive(Debug)]
struct SeveralItems<T> {
    items: VecDeque<T>,
}

impl<T> ShortList<T> {
    /// How many items it has.
    pub fn len(&self) -> usize {
        match &self.0 {
            ListItems::Empty => 0,
            ListItems::One(_) => 1,
            ListItems::Several(several) => several.items.len(),
        }
    }

    /// Whether it has no items.
    pub const fn is_empty(&self) -> bool {
        matches!(self.0, ListItems::Empty)
    }

    /// The first item.
    pub fn front(&self) -> Option<&T> {
        self.0.get(0)
    }

    /// The last item.
    pub fn back_mut(&mut self) -> Option<&mut T> {
        match &mut self.0 {
            ListItems::Empty => None,
            ListItems::One(item) => Some(item),
            ListItems::Several(several) => several.items.back_mut(),
        }
    }

    /// All items, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, several) = match &self.0 {
            ListItems::Empty => (None, None),
            ListItems::One(item) => (Some(item), None),
            ListItems::Several(several) => (None, Some(&several.items)),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    /// Adds an item before all others.
    pub fn push_front(&mut self, item: T) {
        self.add(item, VecDeque::push_front);
    }

    /// Adds an item after all others.
    pub fn push_back(&mut self, item: T) {
        self.add(item, VecDeque::push_back);
    }

    fn add(&mut self, item: T, to_several: fn(&mut VecDeque<T>, T)) {
        self.0 = match self.0.take() {
            ListItems::Empty => ListItems::One(item),
            others @ (ListItems::One(_) | ListItems::Several(_)) => {
                let mut several = others.with_room(1);
                to_several(&mut several.items, item);
                ListItems::Several(several)
            }
        };
    }

    /// Removes and returns the first item.
    pub fn pop_front(&mut self) -> Option<T> {
        self.remove(0)
    }

    /// Removes and returns the item at this index, if there is one. A list with one item left holds
    /// no more memory.
    pub fn remove(&mut self, index: usize) -> Option<T> {
        match self.0.take() {
            ListItems::One(item) if index == 0 => Some(item),
            ListItems::Several(mut several) => {
                let removed = several.items.remove(index);
                self.0 = ListItems::of(several);
                removed
            }
            unchanged @ (ListItems::Empty | ListItems::One(_)) => {
                self.0 = unchanged;
                None
            }
        }
    }

    /// Removes the items that are not to be kept, and the memory that is not needed then.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.0 = match self.0.take() {
            ListItems::One(item) if keep(&item) => ListItems::One(item),
            ListItems::Empty | ListItems::One(_) => ListItems::Empty,
            ListItems::Several(mut several) => {
                several.items.retain(keep);
                several.items.shrink_to_fit();
                ListItems::of(several)
            }
        };
    }
}

impl<T> ListItems<T> {
    /// What is left of several items.
    fn of(mut several: Box<SeveralItems<T>>) -> Self {
        if several.items.len() > 1 {
            return Self::Several(several);
        }
        several.items.pop_front().map_or(Self::Empty, Self::One)
    }

    /// All items, which are replaced by none.
    fn take(&mut self) -> Self {
        replace(self, Self::Empty)
    }

    /// The same items, with room for this many more.
    fn with_room(self, more: usize) -> Box<SeveralItems<T>> {
        let first = match self {
            Self::Several(mut several) => {
                several.items.reserve(more);
                return several;
            }
            Self::One(item) => Some(item),
            Self::Empty => None,
        };
        let mut items = VecDeque::with_capacity(1 + more);
        items.extend(first);
        Box::new(SeveralItems { items })
    }

    fn get(&self, index: usize) -> Option<&T> {
        match self {
            Self::Empty => None,
            Self::One(item) => (index == 0).then_some(item),
            Self::Several(several) => several.items.get(index),
        }
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        match self {
            Self::Empty => None,
            Self::One(item) => (index == 0).then_some(item),
            Self::Several(several) => several.items.get_mut(index),
        }
    }
}

impl<T> Default for ShortList<T> {
    fn default() -> Self {
        Self(ListItems::Empty)
    }
}

impl<T> Index<usize> for ShortList<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        match self.0.get(index) {
            Some(item) => item,
            None => panic!("a list without an item {index}"),
        }
    }
}

impl<T> IndexMut<usize> for ShortList<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        match self.0.get_mut(index) {
            Some(item) => item,
            None => panic!("a list without an item {index}"),
        }
    }
}

impl<T> Extend<T> for ShortList<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        let mut items = items.into_iter().fuse();
        if self.is_empty()
            && let Some(first) = items.next()
        {
            self.0 = ListItems::One(first);
        }
        if let Some(next) = items.next() {
            let mut several = self.0.take().with_room(1 + items.size_hint().0);
            several.items.push_back(next);
            several.items.extend(items);
            self.0 = ListItems::Several(several);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Change {
        PushFront(u8),
        PushBack(u8),
        Extend(Vec<u8>),
        PopFront,
        Remove(usize),
        /// Keeps the multiples.
        Retain(u8),
        Increment,
    }

    fn changes() -> impl Strategy<Value = Change> {
        prop_oneof![
            any::<u8>().prop_map(Change::PushFront),
            any::<u8>().prop_map(Change::PushBack),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(Change::Extend),
            Just(Change::PopFront),
            (0..5_usize).prop_map(Change::Remove),
            (1..4_u8).prop_map(Change::Retain),
            Just(Change::Increment),
        ]
    }

    proptest! {
        #[test]
        fn a_short_list_behaves_like_any_other(changes in prop::collection::vec(changes(), 0..40)) {
            let mut list = ShortList::default();
            let mut model = VecDeque::new();
            for change in changes {
                match change {
                    Change::PushFront(item) => {
                        list.push_front(item);
                        model.push_front(item);
                    }
                    Change::PushBack(item) => {
                        list.push_back(item);
                        model.push_back(item);
                    }
                    Change::Extend(items) => {
                        list.extend(items.clone());
                        model.extend(items);
                    }
                    Change::PopFront => prop_assert_eq!(list.pop_front(), model.pop_front()),
                    Change::Remove(index) => prop_assert_eq!(list.remove(index), model.remove(index)),
                    Change::Retain(of) => {
                        list.retain(|item| item.is_multiple_of(of));
                        model.retain(|item| item.is_multiple_of(of));
                    }
                    Change::Increment => {
                        for last in [list.back_mut(), model.back_mut()].into_iter().flatten() {
                            *last = last.wrapping_add(1);
                        }
                        for (index, item) in model.iter_mut().enumerate() {
                            list[index] = list[index].wrapping_add(1);
                            *item = item.wrapping_add(1);
                        }
                    }
                }
                prop_assert_eq!(list.front(), model.front());
                prop_assert!(list.iter().eq(&model));
                prop_assert_eq!((list.len(), list.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }

    /// Whether it has allocated nothing.
    fn is_small(list: &ShortList<i32>) -> bool {
        matches!(list.0, ListItems::Empty | ListItems::One(_))
    }

    #[test]
    fn a_list_takes_no_more_room_than_an_item_that_owns_memory() {
        assert_eq!(size_of::<ShortList<Vec<u8>>>(), size_of::<Vec<u8>>());
    }

    #[test]
    fn one_item_at_a_time_and_an_empty_list_hold_no_memory() {
        let mut list = ShortList::default();
        for _ in 0..3 {
            list.push_back(1);
            assert_eq!((list.pop_front(), is_small(&list)), (Some(1), true));
        }
        list.extend(0..100);
        while list.pop_front().is_some() {}
        assert!(is_small(&list));
        list.extend(0..100);
        list.retain(|item| *item == 7);
        assert_eq!((list.len(), is_small(&list)), (1, true));
    }

    #[test]
    fn a_list_panics_on_an_index_that_it_does_not_have() {
        for (items, index) in [(0, 0), (0, 1), (1, 1), (2, 2)] {
            let mut list = ShortList::default();
            list.extend(0..items);
            assert!(std::panic::catch_unwind(|| list[index]).is_err(), "{index}");
        }
    }
}

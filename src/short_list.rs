//! A list that rarely has more than one item. Pure.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

/// A list that holds its first item itself: with one item at a time it allocates nothing.
#[derive(Debug)]
pub struct ShortList<T> {
    first: Option<T>,
    /// `None` unless there are several items. Boxed, because an idle client has two lists without
    /// them.
    rest: Option<Box<Rest<T>>>,
}

/// The items after the first.
#[derive(Debug)]
struct Rest<T> {
    items: VecDeque<T>,
}

impl<T> ShortList<T> {
    /// How many items it has.
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.as_ref().map_or(0, |rest| rest.items.len())
    }

    /// Whether it has no items.
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The first item.
    pub const fn front(&self) -> Option<&T> {
        self.first.as_ref()
    }

    /// The last item.
    pub fn back_mut(&mut self) -> Option<&mut T> {
        match &mut self.rest {
            Some(rest) => rest.items.back_mut(),
            None => self.first.as_mut(),
        }
    }

    /// All items, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.first
            .iter()
            .chain(self.rest.iter().flat_map(|rest| &rest.items))
    }

    /// Adds an item before all others.
    pub fn push_front(&mut self, item: T) {
        if let Some(second) = self.first.replace(item) {
            self.rest_mut().push_front(second);
        }
    }

    /// Adds an item after all others.
    pub fn push_back(&mut self, item: T) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            self.rest_mut().push_back(item);
        }
    }

    /// Removes and returns the first item.
    pub fn pop_front(&mut self) -> Option<T> {
        self.remove(0)
    }

    /// Removes and returns the item at this index, if there is one. A list with one item left holds
    /// no more memory.
    pub fn remove(&mut self, index: usize) -> Option<T> {
        let removed = match index.checked_sub(1) {
            Some(index) => self.rest.as_mut()?.items.remove(index),
            None => {
                let second = self.rest.as_mut().and_then(|rest| rest.items.pop_front());
                std::mem::replace(&mut self.first, second)
            }
        };
        self.drop_empty_rest();
        removed
    }

    /// Removes the items that are not to be kept, and the memory that is not needed then.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let keeps_first = self.first.as_ref().is_some_and(&mut keep);
        if let Some(rest) = &mut self.rest {
            rest.items.retain(keep);
        }
        if !keeps_first {
            self.first = self.rest.as_mut().and_then(|rest| rest.items.pop_front());
        }
        if let Some(rest) = &mut self.rest {
            rest.items.shrink_to_fit();
        }
        self.drop_empty_rest();
    }

    /// The items after the first, to which one is added.
    fn rest_mut(&mut self) -> &mut VecDeque<T> {
        let rest = self.rest.get_or_insert_with(|| {
            Box::new(Rest {
                items: VecDeque::new(),
            })
        });
        &mut rest.items
    }

    fn drop_empty_rest(&mut self) {
        if self.rest.as_ref().is_some_and(|rest| rest.items.is_empty()) {
            self.rest = None;
        }
    }
}

impl<T> Default for ShortList<T> {
    fn default() -> Self {
        Self {
            first: None,
            rest: None,
        }
    }
}

impl<T> Index<usize> for ShortList<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        match (&self.first, &self.rest, index.checked_sub(1)) {
            (Some(first), _, None) => first,
            (_, Some(rest), Some(index)) => &rest.items[index],
            _ => panic!("a list without an item {index}"),
        }
    }
}

impl<T> IndexMut<usize> for ShortList<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        match (&mut self.first, &mut self.rest, index.checked_sub(1)) {
            (Some(first), _, None) => first,
            (_, Some(rest), Some(index)) => &mut rest.items[index],
            _ => panic!("a list without an item {index}"),
        }
    }
}

impl<T> Extend<T> for ShortList<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        let mut items = items.into_iter().fuse();
        if self.first.is_none() {
            self.first = items.next();
        }
        if let Some(second) = items.next() {
            let rest = self.rest_mut();
            rest.reserve(1 + items.size_hint().0);
            rest.push_back(second);
            rest.extend(items);
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

    #[test]
    fn one_item_at_a_time_and_an_empty_list_hold_no_memory() {
        let mut list = ShortList::default();
        for _ in 0..3 {
            list.push_back(1);
            assert_eq!((list.pop_front(), list.rest.is_none()), (Some(1), true));
        }
        list.extend(0..100);
        while list.pop_front().is_some() {}
        assert!(list.rest.is_none());
        list.extend(0..100);
        list.retain(|item| *item == 7);
        assert_eq!((list.len(), list.rest.is_none()), (1, true));
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

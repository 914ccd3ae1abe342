package shop

import (
	"fmt"
	"math/rand/v2"
)

// purchase is what one buyer tries. The list of them is the plan: the same seed
// gives the same buyers, in both acts and after every restart of the service.
type purchase struct {
	N        int // its number in the plan, from 1
	Customer string
	Item     string
	Quantity int
	Cents    int
	Declined bool // the bank says no, after everything else went well
}

// console is the item that 200 buyers want and of which there is one.
const (
	console = "console"
	fans    = 200
)

var catalogue = []struct {
	item  string
	cents int
}{
	{"cable", 900}, {"camera", 34900}, {"headset", 7900}, {"keyboard", 8900},
	{"lamp", 2500}, {"monitor", 24900}, {"mouse", 3900}, {"router", 11900},
}

// plan holds every purchase in the order in which the buyers come.
type plan struct {
	purchases []purchase
	orders    int // how many of them end as an order
	// The peak is the purchases numbered from peakFrom to peakTo.
	peakFrom, peakTo int
}

// newPlan draws the plan for so many ordinary orders. Another 6 % are declined
// by the bank, and one of the 200 who want the last console will get it.
func newPlan(seed uint64, orders int) plan {
	rng := rand.New(rand.NewPCG(seed, 1))
	customers := max(20, orders/25)
	declined := orders * 6 / 100
	ordinary := make([]purchase, orders+declined)
	for i := range ordinary {
		thing := catalogue[rng.IntN(len(catalogue))]
		quantity := 1 + rng.IntN(3)
		ordinary[i] = purchase{
			Customer: fmt.Sprintf("customer-%04d", 1+rng.IntN(customers)),
			Item:     thing.item, Quantity: quantity, Cents: quantity * thing.cents,
			Declined: i < declined,
		}
	}
	shuffle(rng, ordinary)

	// At the peak, between two and three fifths of the way, everybody comes.
	from, to := len(ordinary)*2/5, len(ordinary)*3/5
	peak := append([]purchase(nil), ordinary[from:to]...)
	for i := range fans {
		peak = append(peak, purchase{Customer: fmt.Sprintf("fan-%03d", i+1), Item: console, Quantity: 1, Cents: 49900})
	}
	shuffle(rng, peak)
	p := plan{orders: orders + 1, peakFrom: from + 1, peakTo: from + len(peak)}
	p.purchases = append(p.purchases, ordinary[:from]...)
	p.purchases = append(p.purchases, peak...)
	p.purchases = append(p.purchases, ordinary[to:]...)
	for i := range p.purchases {
		p.purchases[i].N = i + 1
	}
	return p
}

func shuffle(rng *rand.Rand, list []purchase) {
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// stock is what lies in the warehouse before the first buyer comes: enough of
// everything but the console.
func stock(orders int) map[string]int {
	s := map[string]int{console: 1}
	for _, thing := range catalogue {
		s[thing.item] = 4 * orders
	}
	return s
}

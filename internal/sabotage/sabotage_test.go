package sabotage_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/sabotage"
)

// TestNames compares the lists with the code: each point is there once, each bug at
// least once, and nothing else is.
func TestNames(t *testing.T) {
	points, bugs := map[string]int{}, map[string]int{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if len(n.Args) == 1 && isOurs(n.Fun, "At") {
					points[text(n.Args[0])]++
				}
			case *ast.BinaryExpr:
				if isOurs(n.X, "Bug") {
					bugs[text(n.Y)]++
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(points) < 40 || len(bugs) < 20 {
		t.Errorf("%d points and %d bugs found, where is the code?", len(points), len(bugs))
	}
	for _, name := range sabotage.Points {
		if points[name] != 1 {
			t.Errorf("point %s is in the code %d times, not once", name, points[name])
		}
		delete(points, name)
	}
	for name := range points {
		t.Errorf("point %s is not in the list", name)
	}
	for name := range bugs {
		if !slices.Contains(sabotage.Bugs, name) {
			t.Errorf("bug %s is not in the list", name)
		}
	}
	for _, name := range sabotage.Bugs {
		if bugs[name] == 0 {
			t.Errorf("bug %s is not in the code", name)
		}
	}
}

func isOurs(e ast.Expr, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != name {
		return false
	}
	pkg, ok := s.X.(*ast.Ident)
	return ok && pkg.Name == "sabotage"
}

func text(e ast.Expr) string {
	l, ok := e.(*ast.BasicLit)
	if !ok {
		return "not a literal"
	}
	s, _ := strconv.Unquote(l.Value)
	return s
}

// TestNothing: in a real build nothing happens.
func TestNothing(t *testing.T) {
	t.Setenv("OW_POINT", "bus.take:error")
	t.Setenv("OW_BUG", "ack-early")
	if sabotage.Bug != "" || sabotage.At("bus.take") != nil {
		t.Error("this is sabotage")
	}
}

"""The solvers that tools/designs.py needs beyond EngiBench's own.

Heat              heatconduction2d without its Docker image: the same discrete problem with CHOLMOD and nlopt's MMA
fast_engibench    a context in which EngiBench's beams2d and photonics2d run faster: factorisations are reused
"""

import contextlib
import hashlib
from unittest import mock

import cvxopt
import cvxopt.cholmod
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from scipy.spatial import KDTree

# Degree-3 quadrature on a triangle (Strang & Fix, 6 points of equal weight, barycentric coordinates): (6, 3).
_A, _B, _C = 0.659027622374092, 0.231933368553031, 0.109039009072877
QUADRATURE = np.array([(_A, _B, _C), (_A, _C, _B), (_B, _A, _C), (_B, _C, _A), (_C, _A, _B), (_C, _B, _A)])


class Stiffness:
    """Finite-element systems K(k) u = b on one mesh; every element has the same matrix times its own stiffness k.

    element (m, m); dofs (elements, m): the degrees of freedom of each element; free: those not fixed at 0. Sparsity
    pattern and symbolic factorisation are made once, so that a solve is one product and one numeric factorisation.
    """

    def __init__(self, element, dofs, free, size):
        self.free, self.size = free, size
        local = np.full(size, -1)
        local[free] = np.arange(free.size)
        m = dofs.shape[1]
        row, col = local[np.repeat(dofs, m, axis=1)].ravel(), local[np.tile(dofs, m)].ravel()
        value, owner = np.tile(element.ravel(), len(dofs)), np.repeat(np.arange(len(dofs)), m * m)
        keep = (row >= col) & (col >= 0) & (value != 0)  # CHOLMOD reads the lower triangle
        key, position = np.unique(col[keep].astype(np.int64) * free.size + row[keep], return_inverse=True)
        # from k to the matrix's values in CSC order
        self.to_values = sp.csr_matrix((value[keep], (position, owner[keep])), (key.size, len(dofs)))
        column, rows = np.divmod(key, free.size)
        self.matrix = cvxopt.spmatrix(1.0, rows.tolist(), column.tolist(), (free.size, free.size))
        self.factor = cvxopt.cholmod.symbolic(self.matrix)

    def solve(self, k, b):
        """u (size,) for the stiffness k (elements,) and the load b (size,)."""
        self.matrix.V = cvxopt.matrix(self.to_values @ k)
        cvxopt.cholmod.numeric(self.matrix, self.factor)
        x = cvxopt.matrix(b[self.free])
        cvxopt.cholmod.solve(self.factor, x)
        u = np.zeros(self.size)
        u[self.free] = np.asarray(x)[:, 0]
        return u


class Heat:
    """Steady heat conduction on the unit square with distributed heating: what EngiBench solves with FEniCS.

    P1 elements on a `resolution` x `resolution` grid, conductivity k(a) = eps + (1 - eps) a^p (SIMP), uniform source f,
    temperature 0 on the boundary except on an adiabatic gap of width `length` in the middle of the bottom edge.
    Minimised is the thermal compliance J(a) = integral(f T) + alpha integral(|grad a|^2) subject to
    integral(a) <= volume and 0 <= a <= 1. All quantities are dimensionless, as in EngiBench.

    A design is a[x index, y index], (resolution, resolution), as EngiBench's; the bottom edge is a[:, 0].
    """

    def __init__(self, volume=0.5, length=0.5, resolution=101, f=1e-2, eps=1e-3, p=5, alpha=1e-8):
        n, nodes = resolution - 1, resolution**2
        self.shape, self.volume, self.eps, self.p, self.alpha = (resolution, resolution), volume, eps, p, alpha
        i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        v00, v10, v01, v11 = (((i + di) * resolution + j + dj).ravel() for di, dj in ((0, 0), (1, 0), (0, 1), (1, 1)))
        self.triangles = np.vstack([np.c_[v00, v10, v11], np.c_[v00, v01, v11]])  # the diagonal runs from 00 to 11
        # P1 stiffness for k = 1, the same for every element and h: both kinds have their right angle at local node 1.
        self.element = 0.5 * np.array([[1, -1, 0], [-1, 2, -1], [0, -1, 1.0]])
        # Integral of each node's hat function: a node has a third of the area of each of its triangles.
        self.mass = np.bincount(self.triangles.ravel(), minlength=nodes) / (2 * n * n) / 3
        self.load = f * self.mass

        x, y = np.divmod(np.arange(nodes), resolution)
        gap = (x / n >= 0.5 - length / 2) & (x / n <= 0.5 + length / 2)
        cold = (x == 0) | (x == n) | (y == n) | ((y == 0) & ~gap)
        self.stiffness = Stiffness(self.element, self.triangles, np.flatnonzero(~cold), nodes)
        row, col = np.repeat(self.triangles, 3, axis=1).ravel(), np.tile(self.triangles, 3).ravel()
        self.laplacian = sp.csr_matrix((np.tile(self.element.ravel(), len(self.triangles)), (row, col)), (nodes, nodes))
        self._solved_for = None

    def _solve(self, design):
        """The flat design a. Its temperature at every node is kept, as objective and gradient ask for the same a."""
        a = np.asarray(design, dtype=float).ravel()
        if not np.array_equal(a, self._solved_for):
            at_points = a[self.triangles] @ QUADRATURE.T  # (triangles, 6)
            self._dk = (self.p * (1 - self.eps) / 6) * at_points ** (self.p - 1)
            k = self.eps + (1 - self.eps) * (at_points**self.p).mean(1)
            self._temperature = self.stiffness.solve(k, self.load)
            self._solved_for = a.copy()
        return a

    def objective(self, design):
        """J of a design (resolution, resolution) or its flat copy: thermal compliance plus the regularisation."""
        a = self._solve(design)
        return float(self.load @ self._temperature + self.alpha * (a @ (self.laplacian @ a)))

    def gradient(self, design):
        """dJ/da, flat. The problem is self-adjoint, so the temperature is its own adjoint."""
        a = self._solve(design)
        t = self._temperature[self.triangles]
        by_node = -(self._dk @ QUADRATURE) * ((t @ self.element) * t).sum(1)[:, None]
        slope = np.bincount(self.triangles.ravel(), by_node.ravel(), minlength=a.size)
        return slope + 2 * self.alpha * (self.laplacian @ a)

    def optimize(self, evaluations=100, start=None):
        """The design (resolution, resolution) that MMA (Svanberg 1987) finds from `start`, or from the uniform one."""
        import nlopt  # needed for this alone: `make data` installs it

        start = np.full(self.mass.size, self.volume) if start is None else np.clip(np.ravel(start), 0.0, 1.0)
        scale = 1 / self.objective(start)  # MMA's tolerances suit values near 1

        def objective(a, gradient):
            if gradient.size:
                gradient[:] = scale * self.gradient(a)
            return scale * self.objective(a)

        def excess_volume(a, gradient):
            if gradient.size:
                gradient[:] = self.mass
            return self.mass @ a - self.volume

        mma = nlopt.opt(nlopt.LD_MMA, start.size)
        mma.set_min_objective(objective)
        mma.add_inequality_constraint(excess_volume, 1e-8)
        mma.set_lower_bounds(0.0)
        mma.set_upper_bounds(1.0)
        mma.set_maxeval(evaluations)
        return mma.optimize(start).reshape(self.shape)


def _beam_filter(nelx, nely, rmin):
    """The density filter of beams2d, (elements, elements): linear hat of radius rmin (Andreassen et al. 2011)."""
    tree = KDTree(np.stack(np.divmod(np.arange(nelx * nely), nely), 1))
    found = tree.sparse_distance_matrix(tree, rmin, output_type="coo_matrix")  # a matrix: EngiBench multiplies with *
    found.data = rmin - found.data
    return found.tocsc()


def _beam_energy(design, st, cfg):
    """Strain energy of each element at unit stiffness, (elements,), for a flat design."""
    mesh = (cfg["nelx"], cfg["nely"])
    if mesh not in _BEAM_MESHES:
        _BEAM_MESHES[mesh] = Stiffness(st.KE, st.edofMat, st.free, st.ndof)
    u = _BEAM_MESHES[mesh].solve(st.Emin + design ** cfg["penal"] * (st.Emax - st.Emin), st.f[:, 0])
    u = u[st.edofMat]
    return ((u @ st.KE) * u).sum(1)


_BEAM_MESHES = {}  # a mesh's supports are always the same: only load and stiffness change


class _CachedSolver:
    """Stands in for scipy.sparse.linalg inside ceviche: its spsolve keeps the last factorisations, found by content."""

    def __init__(self, keep=4):
        self.keep, self.factors = keep, {}

    def __getattr__(self, name):  # everything but spsolve is scipy's own
        return getattr(spla, name)

    @staticmethod
    def _key(matrix):
        matrix.sort_indices()
        return hashlib.blake2b(matrix.data.tobytes() + matrix.indices.tobytes()).digest()

    def spsolve(self, matrix, b):
        matrix, b = matrix.tocsc(), np.asarray(b).ravel().astype(complex)
        key = self._key(matrix)
        if key in self.factors:
            return self.factors[key].solve(b)
        transposed = self._key(matrix.T.tocsc())  # the adjoint system
        if transposed in self.factors:
            return self.factors[transposed].solve(b, "T")
        self.factors = dict(list(self.factors.items())[1 - self.keep :])
        # The pattern is symmetric: minimum degree on A + A' fills in far less than SuperLU's default ordering (COLAMD)
        how = dict(permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        self.factors[key] = spla.splu(matrix, **how)
        return self.factors[key].solve(b)


@contextlib.contextmanager
def fast_engibench():
    """Within it, EngiBench's beams2d and photonics2d use the functions above: each matrix is factorised once."""
    import ceviche.solvers
    import engibench.problems.beams2d.backend as backend
    import engibench.problems.beams2d.v0 as v0
    import engibench.problems.beams2d.v1 as v1

    patches = [(ceviche.solvers, "spl", _CachedSolver()), (backend, "h_mat", _beam_filter)]
    patches += [(module, "calc_sensitivity", _beam_energy) for module in (v0, v1)]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        yield
